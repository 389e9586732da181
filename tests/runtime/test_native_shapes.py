"""The backend `native` on images that are not square, over a double of the driver that computes the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from native_double import NativeBuild

from vae_edge.preprocess import InputSpec

pytestmark = pytest.mark.slow

CODE = """
from pathlib import Path
import numpy as np
import vae_edge
from native_double import reference_kernel, run_with
from vae_edge.bundle import load_bundle
from vae_edge.probes import compare, load as load_probes
BUNDLE = Path({bundle!r})
run_with(reference_kernel(BUNDLE, "fp16", lambda outputs: outputs))
bundle = load_bundle(BUNDLE)
probes = load_probes(bundle.file(bundle.probes))
exact = probes.models[bundle.find(precision="fp16").sha256]
with vae_edge.load(BUNDLE, "native", "fp16", verify="off") as classify:
    print([info.shape for info in classify.session.inputs])
    found = classify.session.infer(probes.images)
    print(compare(exact, dict(zip([info.name for info in classify.outputs], found))))
    try:
        classify.session.infer(np.ascontiguousarray(probes.images.transpose(0, 2, 1, 3)))
    except ValueError as error:
        print("images should be uint8" in str(error))
"""


def test_images_that_are_not_square_reach_the_network_whole(native: NativeBuild, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from vae_edge.data.dataset import LabelledImages
    from vae_edge.exporting.bundle import BundleMetadata, export_bundle, quantize_bundle
    from vae_edge.exporting.network_file import build_bundle_network
    from vae_edge.model import AngleVAE, create_config

    torch.manual_seed(0)
    model = AngleVAE(create_config("tiny", size=(40, 30), classes=2)).eval()
    torch.nn.init.uniform_(model.score.loc, 0.5, 1.0)  # a score that subtracts nothing would be exported otherwise
    about = BundleMetadata("tall", ("a", "b"), InputSpec((40, 30), 1), "full", 1.0, 0.05, {"seed": 0})
    images = np.random.default_rng(0).integers(0, 256, (24, 40, 30, 1), dtype=np.uint8)
    export_bundle(model, about, tmp_path / "bundle", images, {}, {})
    labelled = LabelledImages(images, np.arange(24) % 2, ("a", "b"))
    quantize_bundle(tmp_path / "bundle", "fp16", labelled, labelled, "noise", force=True)
    build_bundle_network(tmp_path / "bundle", ["orin"], "fp16")
    done = native.run(CODE.format(bundle=str(tmp_path / "bundle")), None)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[['batch', 40, 30, 1]]", "[]", "True"]
