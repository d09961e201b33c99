"""The plot of a latent map: colours of classes, and the frame of the decoded images."""

from __future__ import annotations

import torch

from diffpipe.evaluation.latent_map import SIDE, Map, principal
from diffpipe.report.latent_map_plot import plot_latent_map


def test_each_class_has_its_colour_in_the_legend_and_on_the_map() -> None:
    z, labels = torch.randn(30, 2, generator=torch.Generator().manual_seed(3)), torch.arange(30) % 3
    plane = principal(z)
    corners = torch.tensor([[-1.0, -1], [1, 1]], dtype=torch.float64)
    decoded = torch.zeros(SIDE**2, 3, 4, 4, dtype=torch.uint8)
    figure = plot_latent_map(Map(plane, plane.points(z), labels, ["cat", "dog", "owl"], corners, decoded), "title")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog", "owl"]
    colours = [handle.get_color() for handle in legend.legend_handles]  # pyright: ignore
    dots = figure.axes[0].collections[0].get_facecolors()[:, :3]  # pyright: ignore
    assert [tuple(dot) for dot in dots] == [colours[label][:3] for label in labels]
    assert figure.axes[1].get_images()[0].get_extent() == [-1, 1, -1, 1]


def test_axes_name_the_share_of_the_variance_and_without_decoded_images_there_is_one_panel() -> None:
    z = torch.randn(30, 5, generator=torch.Generator().manual_seed(3))
    plane, corners = principal(z), torch.zeros(2, 2, dtype=torch.float64)
    assert plane.explained is not None
    figure = plot_latent_map(Map(plane, plane.points(z), torch.arange(30) % 2, ["a", "b"], corners, None), "title")
    (axes,) = figure.axes
    for i, label in enumerate((axes.get_xlabel(), axes.get_ylabel())):
        assert f"principal component {i + 1} ({100 * plane.explained[i]:.1f}%" in label
