// Draw edges as lines that go between nodes and not through them. Pure.

const CLEAR = 9;
const APART = 7;

/** Return {id: {path, label: {x, ys, anchor}, end: {x, y}}} for edges between placed nodes. */
export function routes(edges, at) {
  const shown = edges.filter((edge) => at.has(edge.from) && at.has(edge.to));
  const columns = columnsOf([...at.values()]);
  const ports = portsOf(shown, at);
  const used = new Map();
  return new Map(shown.map((edge) => [edge.id, route(edge, at, columns, ports, used)]));
}

/** Return the boxes in columns, from left to right: those beside each other are in one. */
function columnsOf(boxes) {
  const columns = [];
  for (const box of [...boxes].sort((a, b) => a.x - b.x)) {
    const last = columns.at(-1);
    if (last !== undefined && box.x < last.right + 2 * CLEAR) {
      last.boxes.push(box);
      last.right = Math.max(last.right, box.x + box.width);
    } else {
      columns.push({ x: box.x, right: box.x + box.width, boxes: [box] });
    }
  }
  return columns;
}

const middle = (box) => box.y + box.height / 2;

/** Return which sides two boxes are joined by. */
function sides(from, to) {
  if (to.x >= from.x + from.width) return ["right", "left"];
  if (from.x >= to.x + to.width) return ["left", "right"];
  return ["right", "right"];
}

/** Return where each edge leaves and enters: spread over a side, in the order of the other ends. */
function portsOf(edges, at) {
  const bySide = new Map();
  for (const edge of edges) {
    const [out, into] = sides(at.get(edge.from), at.get(edge.to));
    for (const [end, id, side, other] of [["from", edge.from, out, edge.to], ["to", edge.to, into, edge.from]]) {
      const key = `${id}|${side}`;
      if (!bySide.has(key)) bySide.set(key, []);
      bySide.get(key).push({ key: `${end}|${edge.id}`, id, side, y: middle(at.get(other)), x: at.get(other).x, edge: edge.id });
    }
  }
  const ports = new Map();
  for (const list of bySide.values()) {
    // those between the same two nodes in one order at both ends, so that they do not cross
    list.sort((a, b) => a.y - b.y || a.x - b.x || (a.edge < b.edge ? -1 : 1));
    list.forEach((one, i) => {
      const box = at.get(one.id);
      const room = Math.min(box.height - 8, list.length * 33);
      const y = middle(box) - room / 2 + (room / list.length) * (i + 0.5);
      ports.set(one.key, { x: one.side === "right" ? box.x + box.width : box.x, y, side: one.side });
    });
  }
  return ports;
}

function route(edge, at, columns, ports, used) {
  const start = ports.get(`from|${edge.id}`);
  const end = ports.get(`to|${edge.id}`);
  if (start.side === end.side) return bulge(start, end);
  const back = start.side === "left";
  const [a, b] = back ? [end, start] : [start, end];
  const points = [a];
  for (const column of columns) {
    if (column.x <= a.x + 1 || column.right >= b.x - 1) continue;
    const wanted = a.y + ((b.y - a.y) * ((column.x + column.right) / 2 - a.x)) / (b.x - a.x);
    const last = points.at(-1).y;
    const y = free(column, Math.abs(last - b.y) < 4 ? last : wanted, used);
    if (y !== null) points.push({ x: column.x - CLEAR, y }, { x: column.right + CLEAR, y });
  }
  points.push(b);
  if (back) points.reverse();
  return {
    path: smooth(points),
    end,
    label: { x: end.x + (back ? 1 : -1) * (edge.denied ? 16 : 11), ys: heights(start, end), anchor: back ? "start" : "end" },
  };
}

/** Return the heights of a label: first on the side from which the line does not come. */
function heights(start, end) {
  const [above, below] = [end.y - 5, end.y + 12];
  return start.y < end.y - 2 ? [below, above, below + 13, above - 13] : [above, below, above - 13, below + 13];
}

/** Return a height near the wanted one at which a line crosses a column; null where all is free. */
function free(column, wanted, used) {
  const blocked = column.boxes.some((box) => box.y - CLEAR < wanted && wanted < box.y + box.height + CLEAR);
  let y = wanted;
  if (blocked) {
    const edges = column.boxes.flatMap((box) => [box.y - CLEAR - 2, box.y + box.height + CLEAR + 2]);
    const open = edges.filter((one) => !column.boxes.some((box) => box.y - CLEAR < one && one < box.y + box.height + CLEAR));
    y = open.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best), open[0] ?? wanted);
  }
  const key = `${column.x}|${Math.round(y / APART)}`;
  const times = used.get(key) ?? 0;
  used.set(key, times + 1);
  if (!blocked && times === 0) return y;
  return y + (times % 2 ? 1 : -1) * Math.ceil(times / 2) * 3;
}

/** Return a line of curves that is level at each point. */
function smooth(points) {
  let path = `M${round(points[0].x)} ${round(points[0].y)}`;
  for (let i = 1; i < points.length; i++) {
    const [a, b] = [points[i - 1], points[i]];
    if (a.y === b.y) {
      path += `H${round(b.x)}`;
    } else {
      const half = (b.x - a.x) / 2;
      path += `C${round(a.x + half)} ${round(a.y)} ${round(b.x - half)} ${round(b.y)} ${round(b.x)} ${round(b.y)}`;
    }
  }
  return path;
}

/** Return a line between two nodes of one column, which leaves and enters at the right. */
function bulge(start, end) {
  const far = 26 + Math.min(40, Math.abs(end.y - start.y) / 8);
  const x = Math.max(start.x, end.x) + far;
  const path = `M${round(start.x)} ${round(start.y)}C${round(x)} ${round(start.y)} ${round(x)} ${round(end.y)} ${round(end.x)} ${round(end.y)}`;
  return { path, end, label: { x: end.x + 16, ys: heights(start, end), anchor: "start" } };
}

const round = (number) => Math.round(number * 10) / 10;
