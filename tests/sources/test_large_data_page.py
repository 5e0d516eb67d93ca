"""The example of docs/large_data.rst, run as it stands there, on fewer samples."""

from pathlib import Path

import h5py
import numpy as np
import zarr

from tests.pages import literal_blocks

PAGE = Path(__file__).parents[2] / "docs" / "large_data.rst"


def test_from_a_network_to_coefficients_on_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = literal_blocks(PAGE)[0]
    assert "generator, 2000," in code
    names = {}
    exec(code.replace("generator, 2000,", "generator, 200,"), names)
    panda = names["panda"]
    n_passes, score = capsys.readouterr().out.split()
    assert int(n_passes) == panda.n_passes_ > 1 and 0.5 < float(score) < 1
    # What is in the files is what is made in memory.
    activations = names["extractor"].transform(names["latents"])
    with h5py.File("activations.h5") as file:
        np.testing.assert_allclose(file["block16"][:], activations, atol=1e-5)
    found = zarr.open_array("coefficients.zarr", mode="r")[:]
    expected = panda.transform(activations)
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())
