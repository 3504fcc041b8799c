"""Write the chapter of commands beside many services on one network."""

from __future__ import annotations

from figures import Found, Row, median, number, ratio, spread, times
from page_parts import prose

BESIDE_MANY = (
    ("check", "`niso net check`", "≤ 2,000 ms"),
    ("repair", "`niso net repair` of flushed rules", "≤ 3,000 ms"),
    ("ps", "`niso ps`", "≤ 200 ms"),
    ("stats", "`niso net stats`", "≤ 100 ms"),
    ("activate", "`niso activate` of one more service", "ratio ≤ 1.2"),
    ("remove", "`niso remove` of this service", ""),
)


def thousand(found: Found, drawn: set[str]) -> list[str]:
    def row(what: str, who: str) -> Row | None:
        return found.row(what, who, 0)

    def cell(value: Row | None, unit: str = "") -> str:
        return f"{spread(value)}{unit}" if value else "not measured"

    at = {who: value.at for who in ("few", "many") if (value := row("ps", who))}
    few, many = at.get("few", 0), at.get("many", 0)
    lines = [
        f"## Commands with {many:,} services on one network",
        "",
        f"| ms | {few:,} services | {many:,} services | ratio | processor time | memory, MiB | target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for what, words, aim in BESIDE_MANY:
        own = row(what, "many")
        spent, most = row(f"{what}, processor", "many"), row(f"{what}, MiB", "many")
        cells = [words, cell(row(what, "few")), cell(own), times(ratio(own, row(what, "few")))]
        cells += [number(median(spent)) if spent else "", number(median(most)) if most else "", aim]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| | measured | compared with | target |", "| --- | --- | --- | --- |"]
    for what, words, aim in (
        ("end all", "`niso deactivate --all`", "≤ 20 s"),
        ("restore", "`niso restore` after a reboot", "≤ 8 s"),
    ):
        for own in found.rows(what):
            took = Row("", "", 0, 0, [each / 1000 for each in own.values])
            spent = found.row(f"{what}, processor", own.who, own.wanted)
            beside = f"processor time {number(median(spent) / 1000)} s" if spent else ""
            lines.append(
                f"| {words}, {own.at:,} services | {cell(took, ' s')} | {beside} | {aim} |"
            )
    for what, words, aim in (
        ("start of many, each", "services started in one command, time for each", "≤ 12 ms"),
        ("removal of many, each", "services removed in one command, time for each", ""),
    ):
        for own in found.rows(what):
            lines.append(f"| {own.at:,} {words} | {cell(own, ' ms')} | | {aim} |")
    whole, path = row("stack", "stack"), row("longest path", "stack")
    if whole and path:
        beside = f"its longest dependency path alone: {cell(path, ' ms')}, ratio {times(ratio(whole, path))}"
        words = f"`niso stack up` of {whole.at} services that wait until others are healthy"
        lines.append(f"| {words} | {cell(whole, ' ms')} | {beside} | ratio ≤ 1.3 |")
    ratios = [
        f"{words} {times(ratio(row(what, 'stored'), row(what, 'many')))}"
        for what, words, _ in BESIDE_MANY
        if row(what, "stored")
    ]
    if ratios:
        words = (
            f"time with {many:,} services, 10,000 leases of inactive services and 200 more networks"
        )
        lines.append(
            f"| {words}, relative to {many:,} services alone | {', '.join(ratios)} | | ≤ 1.2 |"
        )
    return [
        *lines,
        "",
        prose(
            "Every service runs `sleep` of busybox and has one published port. The processor time includes the command and"
            " the programs that it waits for. Each service of the stack is healthy 0.3 s after its start."
        ),
        "",
    ]
