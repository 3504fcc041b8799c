// The connection to niso web. The token comes in the address's fragment, is kept for this tab and
// this origin alone, and leaves the page in one header only.

const KEY = "niso-token";
const AGAIN_MS = [500, 1000, 2000, 4000];

/** Take the token out of the address bar, where the rest stays, and return it, or null. */
export function token() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = fragment.get("token");
  if (given !== null) {
    if (given !== sessionStorage.getItem(KEY)) sessionStorage.clear(); // another niso web: not its last state
    sessionStorage.setItem(KEY, given);
    fragment.delete("token");
    history.replaceState(null, "", location.pathname + (fragment.size > 0 ? `#${fragment}` : ""));
  }
  return sessionStorage.getItem(KEY);
}

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Yield the parsed lines of a response. */
async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let partial = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (partial + value).split("\n");
    partial = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

/** Follow the states for ever. `on` has state(state), failed(message), lost(why) and refused(). */
export async function follow(on) {
  addEventListener("hashchange", token);
  for (let failures = 0; ; failures++) {
    let why = "lost";
    try {
      const response = await fetch("api/states.jsonl", {
        headers: { Authorization: `Bearer ${token() ?? ""}` },
        cache: "no-store",
        credentials: "omit",
      });
      if (response.status === 403) {
        why = "refused";
      } else if (response.status === 503) {
        why = "busy";
      } else if (response.ok) {
        for await (const line of lines(response)) {
          failures = 0;
          if (line.ended) why = "ended";
          else if (line.error !== undefined) on.failed(line);
          else queueMicrotask(() => on.state(line.state)); // a defect of the page is not a lost connection
        }
      }
    } catch {
      // the server has gone; it is asked again below
    }
    on.lost(why);
    await wait(AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)]);
  }
}
