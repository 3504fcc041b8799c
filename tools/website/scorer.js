// Order the results of a search: titles with words of the query first, then tutorials and guides.
var Scorer = {
  score: ([page, title, , , score]) => {
    const words = (new URLSearchParams(location.search).get("q") || "").toLowerCase().split(/\s+/);
    const named = words.filter((word) => word.length > 2 && title.toLowerCase().includes(word));
    return score + 20 * named.length + (/^docs\/(start|how-to|guide)\//.test(page) ? 10 : 0);
  },
  // the numbers of Sphinx
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
