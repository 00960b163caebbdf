"""Tables, plots and files of what was measured."""

import json
import math
import statistics
import time
from pathlib import Path

LOST = 0.02  # share of frames that may be lost before it is said
COLORS = {"io": "#777777", "macswap": "#b0b0b0", "plain": "#7fb2da", "dunlin": "#1a73b8", "ovs": "#d1641e"}


def summarize(runs):
    """{x: {contender: what was measured of it}}"""
    table = {}
    for r in runs:
        table.setdefault(r["x"], {}).setdefault(r["contender"], []).append(r)
    for row in table.values():
        for name, of_one in row.items():
            cycles = {r["round"]: r["cycles_per_frame"] for r in of_one}
            row[name] = {"median": statistics.median(cycles.values()), "min": min(cycles.values()),
                         "max": max(cycles.values()), "lost": max(r["lost"] for r in of_one), "rounds": cycles,
                         "frames_per_s": statistics.median(r["frames_per_s"] for r in of_one)}
    return table


def ratio(row, a, b):
    """The median of what the rounds say, each by itself: a machine's moods last longer than a round."""
    a, b = (row.get(n, {}).get("rounds", {}) for n in (a, b))
    both = [a[r] / b[r] for r in a.keys() & b.keys()]
    return statistics.median(both) if both else None


def difference(row, a, b):
    """The same for what a frame of one costs more than of the other."""
    a, b = (row.get(n, {}).get("rounds", {}) for n in (a, b))
    both = [a[r] - b[r] for r in a.keys() & b.keys()]
    return statistics.median(both) if both else None


def cell(row, name):
    if name not in row:
        return "-"
    m = row[name]
    lost = f", {m['lost']:.0%} lost" if m["lost"] > LOST else ""
    return f"{m['median']:.1f} ({m['min']:.1f}..{m['max']:.1f}{lost}) {m['frames_per_s'] / 1e6:.2f}M/s"


def show(scenario, table):
    names = [n for n in COLORS if any(n in row for row in table.values())]
    ratios = [(a, b) for a, b in (("dunlin", "io"), ("ovs", "dunlin")) if a in names and b in names]
    head = [scenario.x, *names, *(f"{a}/{b}" for a, b in ratios)]
    rows = []
    for x, row in table.items():
        cells = [f"{x:,}", *(cell(row, n) for n in names)]
        for pair in ratios:
            value, bar = ratio(row, *pair), scenario.bars.get(pair, {}).get(x)
            told = "-" if value is None else f"{value:.2f}"
            if value is not None and bar is not None:
                met = value <= bar if pair[1] == "io" else value >= bar
                told += f" (bar {bar:g}{'' if met else ', missed'})"
            cells.append(told)
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    print(f"\n{scenario.title}: cycles per frame, median (least..most), frames per second\n")
    for row in [head, *rows]:
        print("  ".join(text.rjust(w) for text, w in zip(row, widths)))
    for (one, other), most in scenario.dearer.items():
        for x, row in table.items():
            if (more := difference(row, one, other)) is not None:
                bar = most.get(x, math.inf) if isinstance(most, dict) else most
                print(f"\n{one} at {x:,} {scenario.x}: {more:.1f} cycles more than {other} (bar {bar}"
                      f"{'' if more <= bar else ', missed'})")
    ours = [(x, row["dunlin"]) for x, row in table.items() if "dunlin" in row]
    if len(ours) > 1:
        (few, a), (many, b) = min(ours, key=lambda o: o[0]), max(ours, key=lambda o: o[0])
        print(f"\ndunlin at {many:,} {scenario.x} over {few:,}: {b['median'] / a['median']:.2f} times the cycles, "
              f"{b['frames_per_s'] / a['frames_per_s']:.2f} times the frames")


def svg(scenario, table):
    """Cycles by x, both axes logarithmic, a line for each contender with its spread."""
    width, height, left, top = 640, 360, 60, 40
    xs = sorted(table)
    values = [m[k] for row in table.values() for m in row.values() for k in ("min", "max")]
    low, high = math.log10(max(min(values), 1)) - 0.1, math.log10(max(values)) + 0.1

    def px(x):
        a, b = math.log10(max(xs[0], 1)), math.log10(max(xs[-1], 2))
        return left + (math.log10(max(x, 1)) - a) / (b - a or 1) * (width - left - 110)

    def py(v):
        return height - 40 - (math.log10(max(v, 1)) - low) / (high - low or 1) * (height - 40 - top)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
           'font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="{left}" y="20" font-size="14">{scenario.title}</text>']
    for step in range(math.floor(low), math.ceil(high) + 1):
        for tick in (1, 2, 5):
            v = tick * 10 ** step
            if low <= math.log10(v) <= high:
                out.append(f'<line x1="{left}" x2="{width - 110}" y1="{py(v):.1f}" y2="{py(v):.1f}" stroke="#ddd"/>'
                           f'<text x="{left - 6}" y="{py(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    out += [f'<text x="{px(x):.1f}" y="{height - 22}" text-anchor="middle">{x:,}</text>' for x in xs]
    out.append(f'<text x="{(width - 50) / 2:.0f}" y="{height - 6}" text-anchor="middle">{scenario.x}</text>'
               f'<text x="14" y="{height / 2:.0f}" transform="rotate(-90 14 {height / 2:.0f})" '
               'text-anchor="middle">cycles per frame</text>')
    for name, color in COLORS.items():
        points = [(px(x), table[x][name]) for x in xs if name in table[x]]
        if not points:
            continue
        line = " ".join(f"{x:.1f},{py(m['median']):.1f}" for x, m in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        for x, m in points:
            out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{py(m["min"]):.1f}" y2="{py(m["max"]):.1f}" '
                       f'stroke="{color}"/><circle cx="{x:.1f}" cy="{py(m["median"]):.1f}" r="3" fill="{color}"/>')
        x, m = points[-1]
        out.append(f'<text x="{x + 8:.1f}" y="{py(m["median"]) + 4:.1f}" fill="{color}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def write(folder, name, result):
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime(f"{name}-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps({"scenario": name, **result}, indent=1) + "\n")
    return Path(path)


def save(folder, scenario, result, table):
    path = write(folder, scenario.name, {**result, "summary": table})
    path.with_suffix(".svg").write_text(svg(scenario, table))
    return path
