// Numbers and names as people read them.

/** Return bits per second in up to three digits, as niso top does. */
export function rate(bits) {
  if (bits === null || bits === undefined) return "–";
  for (const unit of ["b/s", "kb/s", "Mb/s", "Gb/s"]) {
    if (bits < 999.5 || unit === "Gb/s") return `${bits.toFixed(bits < 9.95 && unit !== "b/s" ? 1 : 0)} ${unit}`;
    bits /= 1000;
  }
}

/** Return new flows per second, or "" for none. */
export const perSecond = (number) => (number > 0 ? `${number < 9.95 ? number.toFixed(1) : number.toFixed(0)}/s` : "");

/** Return what a flow does at present: 390 kb/s 7.8 new/s; else how often it was and what is open. */
export function moves(flow) {
  const now = [flow.bits > 0 && rate(flow.bits), flow.rate > 0 && `${perSecond(flow.rate).replace("/s", " new/s")}`].filter(Boolean);
  return now.length ? now.join("  ") : [`${flow.new}×`, flow.open > 0 && `${flow.open} open`].filter(Boolean).join("  ");
}

/** Return how long ago something was. */
export function ago(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 3) return "now";
  return `${period(seconds)} ago`;
}

/** Return a period in its largest unit. */
export function period(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "m"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)}${unit}`;
  }
  return `${Math.floor(seconds)}s`;
}

/** Return a count: 1 service, 2 services. */
export const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** Return a port, or a range of ports. */
export const span = (first, range = 1) => (range > 1 ? `${first}–${first + range - 1}` : `${first}`);

/** Return a name that fits into so many characters; a long name is cut in the middle. */
export function short(name, most) {
  const end = Math.floor((most - 1) / 2);
  return name.length <= most ? name : `${name.slice(0, most - 1 - end)}…${end > 0 ? name.slice(-end) : ""}`;
}

const inBrackets = (name) => (name.includes(":") ? `[${name}]` : name);

/** Return the target of a flow: db:5432/tcp. */
export const target = (flow) => `${inBrackets(flow.to.name)}:${flow.port}/${flow.proto}`;

/** Return the port of a flow; tcp is not said. */
export const port = (flow) => `:${flow.port}${flow.proto === "tcp" ? "" : `/${flow.proto}`}`;

const FIELDS = { allow_from: "allow_from", deny_from: "deny_from", "egress.allow": "egress_allow", "egress.deny": "egress_deny" };
const MOST_ENTRIES = 6;
const MOST_SOURCES = 4;

/** Return the line of a manifest after a change, as TOML; long lists are cut. */
export function line(change, policy) {
  const key = change.key.replace(/^network\.policy\./, "").replace(/\[\d+\]$/, "");
  const before = policy?.[FIELDS[key]] ?? [];
  const after = change.adds ? [...before, change.text] : before.filter((text) => text !== change.text);
  const shown = after.slice(-MOST_ENTRIES).map((text) => JSON.stringify(text));
  return `${key} = [${after.length > MOST_ENTRIES ? "…, " : ""}${shown.join(", ")}]`;
}

/** Return why new flows are not recorded, or "". */
export function unrecorded(state) {
  const forget = "niso net flows --forget makes room.";
  if (state.full.length > 0) return `New flows are not recorded: the kernel's sets have no room (${state.full.join(", ")}). ${forget}`;
  if (state.beyond === 0) return "";
  const from = state.beyond_from.slice(0, MOST_SOURCES).join(", ") + (state.beyond_from.length > MOST_SOURCES ? ", …" : "");
  return `${count(state.beyond, "flow")} of ${from} not recorded: each source has a share of the kernel's sets. ${forget}`;
}
