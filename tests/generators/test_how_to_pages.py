"""The pages of docs/generators, run on small stand-ins for the networks they load."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tests.generators import families as f
from tests.pages import literal_blocks

PAGES = Path(__file__).parents[2] / "docs" / "generators"

STAND_INS = {
    "progan": f.ProGANNet,
    "stylegan": f.StyleGANNet,
    "stylegan2": f.NvidiaStyleGAN2Net,
    "stylegan3": f.StyleGAN3Net,
    "biggan": f.HuggingFaceBigGANNet,
}


def blocks(page):
    """The literal blocks of a page."""
    return literal_blocks(PAGES / f"{page}.rst")


def on_stand_in(code, network):
    """The same code with the stand-in's layer and classes, and few samples."""
    code = re.sub(
        r'GeneratorFeatureExtractor\(generator, "[^"]*",( select=\d,| tap="\w*",)*',
        "GeneratorFeatureExtractor(generator, **generator.layer,",
        code,
    )
    code = re.sub(
        r"sample_latents\(generator, \d+", "sample_latents(generator, 30", code
    )
    return code.replace("label=277", "label=3").replace("truncation_layers=8", "")


@pytest.mark.parametrize("page", STAND_INS)
def test_from_a_checkpoint_to_an_edited_image(page, capsys):
    loading, code, *_ = blocks(page)
    assert re.search(r"^\s*generator = ", loading, re.M)
    compile(loading, page, "exec")
    generator = f.seeded(STAND_INS[page])
    names = {"generator": generator}
    exec(on_stand_in(code, generator), names)
    assert len(plt.get_fignums()) == 2
    images = names["extractor"].generate(names["latents"][:4])
    edited = names["editor"].edit(names["latents"][:4], names["Edit"](2, 5, 3.0))
    assert edited.shape == images.shape and abs(edited - images).max() > 1e-3
    assert "layer" in capsys.readouterr().out
    # About ten lines, not counting imports.
    assert len(code.split("\n\n")[1].splitlines()) <= 10


@pytest.mark.parametrize(
    "number, build", [(0, f.GenforceStyleGAN2Net), (1, f.RosinalityStyleGAN2Net)]
)
def test_other_implementations_of_stylegan2(number, build):
    _, code, others = blocks("stylegan2")
    setting = re.split(r"\n(?=from )", others)[number]
    generator = f.seeded(build)
    generator.mean_latent = lambda n: generator.style(f.torch.randn(n, f.W)).mean(
        0, keepdim=True
    )
    lines = [
        line
        for line in setting.splitlines()
        if line.startswith(("forward = ", "extractor = "))
    ]
    names = {"generator": generator}
    imports, body = code.split("\n\n")
    exec(imports, names)
    exec(body.splitlines()[0], names)
    exec(on_stand_in("\n".join(lines), generator), names)
    latents = names["sample_latents"](generator, 3, 0)
    assert names["extractor"].fit_transform(latents).shape[:2] == (3, f.C)


def test_every_page_is_listed():
    index = (PAGES / "index.rst").read_text()
    assert {page.stem for page in PAGES.glob("*.rst")} == {"index", *STAND_INS}
    for page in STAND_INS:
        assert f"   {page}\n" in index and f"<{page}>`" in index
