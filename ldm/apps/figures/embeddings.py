"""Glyphs as points: their cloud in pixel space, in latent space, and under growing noise."""

from collections.abc import Sequence

import numpy as np
import torch

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.inputs import encode, glyphs, model, of_layouts, resolution_of
from ldm.apps.figures.plot_style import BLUE, ORANGE, bare, contours, page
from ldm.diffusion.schedules import SCHEDULES

LAYOUTS = ("horizontal", "vertical")
COLOURS = (BLUE, ORANGE)
NEIGHBOURS = 10  # over which purity is measured


def pixel_space(setting: Setting) -> Drawing:
    """As many left-right as top-bottom glyphs, each one point of as many dimensions as it has pixels."""
    images, labels = _two_layouts(setting)
    points = images.reshape(len(images), -1).astype(np.float32) / 255
    return _map(setting, points, labels, images, "pixels")


def latent_space(setting: Setting) -> Drawing:
    """The same glyphs as latents of the shipped autoencoder."""
    pipeline = model(setting)
    images, labels = _two_layouts(setting, resolution_of(pipeline))
    points = encode(pipeline, images[..., None]).flatten(1).numpy()
    return _map(setting, points, labels, images, "latents")


def _two_layouts(setting: Setting, resolution: int = 64) -> tuple[np.ndarray, np.ndarray]:
    return of_layouts(glyphs(setting, "train", resolution), LAYOUTS, 40 if setting.quick else 1500)


def embed(points: np.ndarray, neighbours: int = 30):
    """A fitted UMAP of points (n, d) into the plane, the same every time (McInnes et al. 2018, arXiv 1802.03426)."""
    import warnings

    from umap import UMAP

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # a fixed seed means one thread: so be it
        warnings.filterwarnings("ignore", message=".*'force_all_finite'.*")
        return UMAP(n_neighbors=neighbours, min_dist=0.05, random_state=0).fit(points)


def purity(points: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """The mean fraction of a point's nearest neighbours, itself left out, that have its label: 1 if wholly separate."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=neighbours).fit(points).kneighbors(return_distance=False)
    return float((labels[found] == labels[:, None]).mean())


def agreement(points: np.ndarray, labels: np.ndarray) -> float:
    """Adjusted Rand index between labels and a clustering that never saw them: k-means with as many clusters.

    1 = the same partition, 0 = no better than chance. Source: Hubert and Arabie 1985, Journal of Classification 2.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    clusters = KMeans(len(np.unique(labels)), n_init=10, random_state=0).fit_predict(points)
    return float(adjusted_rand_score(labels, clusters))


def _map(setting: Setting, points: np.ndarray, labels: np.ndarray, images: np.ndarray, what: str) -> Drawing:
    """The plane with every glyph as a dot and contours of each layout; beside it the glyphs themselves."""
    places = embed(points, 8 if setting.quick else 30).embedding_
    figure, axes = page(1, 2, height=3.7)
    for k, (name, colour) in enumerate(zip(LAYOUTS, COLOURS)):
        here = places[labels == k]
        axes[0, 0].scatter(*here.T, s=2, color=colour, linewidths=0, alpha=0.5, label=name)
        contours(axes[0, 0], here, colour)
    axes[0, 0].legend(loc="best", markerscale=4)
    axes[0, 0].set_title(f"{len(points):,} glyphs, {points.shape[1]:,} {what} each")
    axes[0, 1].set_title("the glyphs in their places")
    _glyphs_in_place(axes[0, 1], places, labels, images)
    for each in axes[0]:
        bare(each)
        each.set(xlim=_limits(places[:, 0]), ylim=_limits(places[:, 1]))
    k = min(NEIGHBOURS, len(points) // 4)
    numbers = {
        "glyphs": len(points),
        "adjusted Rand index of k-means in the plane": agreement(places, labels),
        "adjusted Rand index of k-means on the points themselves": agreement(points, labels),
        f"purity of {k} neighbours in the plane": purity(places, labels, k),
        f"purity of {k} neighbours among the points themselves": purity(points, labels, k),
    }
    return Drawing(figure, numbers)


def _limits(values: np.ndarray) -> tuple[float, float]:
    pad = 0.06 * (values.max() - values.min())
    return float(values.min() - pad), float(values.max() + pad)


def _glyphs_in_place(axes, places: np.ndarray, labels: np.ndarray, images: np.ndarray, cells: int = 20) -> None:
    """In each cell of a grid the glyph nearest to its centre, in its layout's colour."""
    from matplotlib.colors import to_rgb

    low, high = places.min(0), places.max(0)
    step = (high - low) / cells
    for i in range(cells):
        for j in range(cells):
            centre = low + step * (np.array([i, j]) + 0.5)
            away = np.abs((places - centre) / step).max(1)
            nearest = int(away.argmin())
            if away[nearest] > 0.5:
                continue
            paper = images[nearest][..., None] / 255
            tinted = paper + (1 - paper) * np.array(to_rgb(COLOURS[labels[nearest]]))
            (left, bottom), (right, top) = centre - 0.48 * step, centre + 0.48 * step
            axes.imshow(tinted, extent=(left, right, bottom, top), interpolation="antialiased", aspect="auto")


def marginals(setting: Setting) -> Drawing:
    """q(x_t): the glyphs of `pixel_space` with noise added, in a plane that was fitted once, to the clean ones."""
    from sklearn.decomposition import PCA

    images, labels = of_layouts(glyphs(setting, "train"), LAYOUTS, 40 if setting.quick else 500)
    images = images.reshape(len(images), 16, 4, 16, 4).mean((2, 4))
    data = standardised(images.reshape(len(images), -1))
    planes = {"UMAP": embed(data, 8 if setting.quick else 30), "principal axes": PCA(2, random_state=0).fit(data)}
    times = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    figure, axes = page(2, len(times), height=3.0, sharex="row", sharey="row")
    eps = np.random.default_rng(0).standard_normal(data.shape)
    numbers: dict[str, float] = {}
    for column, t in enumerate(times):
        alpha, sigma = (float(s) for s in SCHEDULES["flow"]().scales(torch.tensor(t)))
        noised = (alpha * data + sigma * eps).astype(np.float32)
        for row, plane in enumerate(planes.values()):
            _cloud(axes[row, column], plane.transform(noised), labels)
        axes[0, column].set_title(f"t = {t:g}")
        numbers[f"purity of {NEIGHBOURS} neighbours in pixel space at t = {t:g}"] = purity(noised, labels)
    for row, name in enumerate(planes):
        axes[row, 0].set_ylabel(name)
    dots = axes[0, 0].collections[: 2 * len(LAYOUTS) : 2]  # each is followed by its contours
    figure.legend(dots, LAYOUTS, loc="outside lower center", ncols=2, markerscale=5)
    return Drawing(figure, numbers)


def standardised(points: np.ndarray) -> np.ndarray:
    """Points (n, d) of mean 0 along each axis and variance 1 over all, which is what a schedule expects."""
    centred = points - points.mean(0)
    return (centred / centred.std()).astype(np.float32)


def _cloud(axes, places: np.ndarray, labels: np.ndarray, levels: Sequence[float] = (0.5, 0.9)) -> None:
    for k, colour in enumerate(COLOURS):
        axes.scatter(*places[labels == k].T, s=1.5, color=colour, linewidths=0, alpha=0.4)
        contours(axes, places[labels == k], colour, levels)
    bare(axes)
