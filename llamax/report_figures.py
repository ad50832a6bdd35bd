"""Pictures of scores, as PNG bytes; the same scores give the same bytes."""

import io

MARKERS = "osD^vP*X<>p"  # of systems
HIGHLIGHTED = {"ar": "tab:red", "en": "tab:blue"}  # as in Figure 1 of LLaMAX
DPI = 150


def new_figure(width, height, dpi):
    """A figure of so many inches; without pyplot, which would look for a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def lowest(metric, scores):
    """Where the colours of a metric begin: at 0, but COMET, which is rarely below 30, at the ten below its lowest."""
    return min(scores) // 10 * 10 if metric == "COMET" else 0.0


def matrix_png(matrix, dpi=DPI):
    """The matrix as a heat map: source by target where most of these directions have a score, else the rows of the
    table. Small ones show the scores as numbers, too."""
    import matplotlib
    import numpy as np

    if matrix.dense():
        sources, targets = (
            [code for code in matrix.languages if code in side] for side in map(set, zip(*matrix.scores, strict=True))
        )
        names, columns = sources, targets
        cells = [[(source, target) for target in targets] for source in sources]
        labels = ["target", "source"]
    else:
        names, columns = [name for name, _ in matrix.rows], matrix.languages
        cells = [directions for _, directions in matrix.rows]
        labels = ["language x", "direction"]
    values = np.array([[matrix.scores.get(direction, np.nan) for direction in row] for row in cells])
    if len(columns) > 30 and len(columns) > 3 * len(names):  # a page is read downwards
        values, names, columns, labels = values.T, columns, names, labels[::-1]

    annotated = values.size <= 400
    height = max(2.5, values.shape[0] * (0.3 if values.shape[0] <= 30 else 0.16))
    width = max(2.5, values.shape[1] * (0.45 if annotated else 0.3 if values.shape[1] <= 30 else 0.16))
    figure = new_figure(width + 2.2, height + 1.2, dpi)
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#dddddd")
    low = lowest(matrix.metric, matrix.scores.values())
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=max(low + 1.0, np.nanmax(values)), aspect="auto"
    )
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    figure.colorbar(image, ax=axes, label=matrix.metric, fraction=0.05, shrink=min(1, 5 / height))
    if annotated:
        middle = (image.norm.vmin + image.norm.vmax) / 2
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(
                    x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color="w" if value < middle else "k"
                )
    return png(figure)


def counts_png(by_system, metric, threshold, dpi=DPI):
    """Figure 1: for each language the number of directions above the threshold out of it against into it, a panel and
    marker a system; where several languages are at one point it is larger.

    Args:
        by_system: {system: {language code: report_tables.Count}}.
    """
    import collections

    columns = min(3, len(by_system))
    rows = -(-len(by_system) // columns)
    figure = new_figure(3.6 * columns, 3.6 * rows + 0.4, dpi)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    scored = [n for found in by_system.values() for count in found.values() for n in (count.into, count.out_of) if n]
    for number, (axes, (name, found)) in enumerate(zip(panels, by_system.items(), strict=False)):
        marker = MARKERS[number % len(MARKERS)]
        places = {code: (count.into_above, count.out_of_above) for code, count in found.items()}
        others = collections.Counter(place for code, place in places.items() if code not in HIGHLIGHTED)
        if others:
            x, y = zip(*others, strict=True)
            axes.scatter(x, y, s=[14 * n**0.5 for n in others.values()], c="#555555", alpha=0.5, marker=marker, lw=0)
        for code, colour in HIGHLIGHTED.items():
            if code in places:
                axes.scatter(*places[code], s=40, c=colour, marker=marker, zorder=3)
                offset = (0, 7) if code == "en" else (0, -14)
                axes.annotate(
                    code, places[code], offset, textcoords="offset points", color=colour, fontsize=9, ha="center"
                )
        axes.set_title(name, fontsize=9, parse_math=False)  # a name may hold a $
        axes.grid(color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
        # Where few languages have many more directions than the others, those would all lie in a corner.
        if max(scored) > 4 * min(scored) and max(scored) > 20:
            axes.set_xscale("symlog", linthresh=10)
            axes.set_yscale("symlog", linthresh=10)
            ticks = [n for n in (0, 2, 5, 10, 20, 50, 100, 200) if n <= max(scored)]
            axes.set_xticks(ticks, map(str, ticks))
            axes.set_yticks(ticks, map(str, ticks))
            axes.minorticks_off()
            axes.set_xlim(-1.5, max(scored) * 1.5)
        else:
            axes.set_xlim(-0.1 * max(scored), max(scored) * 1.1)
            for axis in (axes.xaxis, axes.yaxis):
                axis.get_major_locator().set_params(integer=True)
        axes.set_ylim(*axes.get_xlim())
    for axes in panels[len(by_system) :]:
        axes.set_visible(False)
    figure.supxlabel(f"X→L: directions into the language above {threshold:g} {metric}", fontsize=9)
    figure.supylabel("L→X: directions out of it", fontsize=9)
    return png(figure)


def seen_png(by_system, metric, dpi=DPI):
    """Figure 4: each further system against the first, a point a language, out of and into English.

    Args:
        by_system: {system: report_tables.by_seen()}, two or more.
    """
    (first, base), *others = by_system.items()
    figure = new_figure(9, 4.4 * len(others), dpi)
    panels = figure.subplots(len(others), 2, squeeze=False)
    for row, (name, groups) in zip(panels, others, strict=True):
        for axes, side, title in zip(row, ("en-x", "x-en"), ("en→X", "X→en"), strict=True):
            top = 1.0
            for group, colour in (("seen", "tab:blue"), ("unseen", "tab:orange")):
                codes = [code for code in groups[group][side] if code in base[group][side]]
                x, y = ([found[group][side][code] for code in codes] for found in (base, groups))
                top = max([top, *x, *y])
                axes.scatter(x, y, s=12, c=colour, label=f"{group} ({len(codes)})", alpha=0.8)
                for code, place in zip(codes, zip(x, y, strict=True), strict=True):
                    axes.annotate(code, place, (2, 2), textcoords="offset points", fontsize=5, color="#444444")
            axes.plot([0, top], [0, top], color="#999999", linewidth=0.8)
            axes.set_xlabel(f"{first}, {metric}", fontsize=9, parse_math=False)
            axes.set_ylabel(f"{name}, {metric}", fontsize=9, parse_math=False)
            axes.set_title(title, fontsize=10)
            axes.legend(fontsize=8, frameon=False)
    return png(figure)
