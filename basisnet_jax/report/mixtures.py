"""The report's section on coefficients: which bases classes, layers and images use."""

import numpy as np

from basisnet_jax import coefficients
from basisnet_jax.report import figures, measure, page
from basisnet_jax.report.measure import Measured
from basisnet_jax.report.page import Html, element, percent

HEAT_MAPS = 3  # layers: the first, the one in the middle and the last
HEAT_MAP_CLASSES = 30  # at most; of more, those that differ most from the average
COLOURED_CLASSES = 10  # in the projection, by the same rule


def section(measured: Measured, most: int) -> Html | None:
    """Heat maps, usage and entropy, and the projection of at most so many images; None where nothing is mixed."""
    if not measured.layers or measured.rows["coefficients"].shape[-1] == 1:
        return None
    places = list(measured.layers.values())
    values, labels = measured.rows["coefficients"][:, places], measured.rows["label"]
    means = measure.class_means(values, labels)
    return page.joined(
        by_class(measured, means),
        page.figures(by_layer(values, list(measured.layers)), projection(measured, values, means, most)),
    )


def by_class(measured: Measured, means: dict[int, np.ndarray]) -> Html:
    """Mean coefficients, class x basis, of a few layers; `means` has those of each class, [K, N]."""
    layers, chosen = list(measured.layers), measure.most_particular(means, HEAT_MAP_CLASSES)
    if len(chosen) < len(means):
        classes = f"the {len(chosen)} of {len(means):,} that differ most from the average"
    else:
        classes = f"all {len(means)}"
    maps = []
    for k in sorted({round(k) for k in np.linspace(0, len(layers) - 1, HEAT_MAPS)}):
        rows = np.stack([means[label][k] for label in chosen])
        caption = f"Mean coefficients of layer {k + 1} of {len(layers)}."
        alt = f"Heat map of the mean coefficients of {layers[k]}: {rows.shape[0]} classes by {rows.shape[1]} bases."
        svg = figures.class_mixtures(rows, [measured.classes[label] for label in chosen])
        maps.append(page.picture(svg, layers[k], caption, alt))
    text = (
        f"The mean mixture of each class ({classes}). A class with its own mixture has a row unlike the others. Each "
    )
    text += "layer has its own scale."
    return page.joined(element("p", text), page.figures(*maps))


def by_layer(values: np.ndarray, layers: list[str]) -> Html:
    usage, entropy = coefficients.usage(values), measure.entropy_by_layer(values)
    dead = coefficients.dead(usage, layers)
    return page.picture(
        figures.by_layer(usage, entropy, layers, coefficients.DEAD),
        "Usage and entropy by layer",
        "Red bases are used more than an even share, blue ones less, a cross marks a dead one "
        f"({len(dead)} of {usage.size}). At an entropy of 1 mixtures are even, at 0 one basis stands alone.",
        f"Heat map of usage, {len(layers)} layers by {usage.shape[1]} bases, and bars of entropy from "
        f"{entropy.min():.2f} to {entropy.max():.2f}.",
    )


def projection(measured: Measured, values: np.ndarray, means: dict[int, np.ndarray], most: int) -> Html:
    """Images as points by their coefficients: those of the coloured classes first, up to the limit."""
    labels, coloured = measured.rows["label"], measure.most_particular(means, COLOURED_CLASSES)
    xy, explained = measure.principal_components(values.reshape(len(values), -1).astype(float))
    shown = np.argsort(~np.isin(labels, coloured), kind="stable")[:most]
    groups = [(measured.classes[label], np.flatnonzero(labels[shown] == label)) for label in coloured]
    others = f" Grey: the other {len(means) - len(coloured):,} classes." if len(means) > len(coloured) else ""
    return page.picture(
        figures.projection(xy[shown], explained, groups),
        "Images by their mixtures",
        "Each point is an image; near ones get similar specialists. The first two principal components of all "
        f"coefficients hold {percent(explained.sum(), 0)} of their variance. {len(shown):,} of {len(values):,} images."
        f"{others}",
        f"Scatter plot of {len(shown):,} images, {len(groups)} classes in colour.",
    )
