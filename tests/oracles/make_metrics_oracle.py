"""Regenerates metrics.json: what piq and piqa say of pairs of phantoms, see `metrics_pairs`.

pip install torch==2.13.0; pip install --no-deps piq==0.8.0 piqa==1.3.2; python tests/oracles/make_metrics_oracle.py

MS-GMSD, MDSI and HaarPSI by piq, whose own tests are anchored in the authors' MATLAB code; PSNR and the SSIMs by piqa,
the library of the system that these are compared with. (piqa's MDSI averages over the batch: no oracle.)
"""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

for name in ("", ".models", ".models.inception", ".transforms", ".ops", ".utils"):
    sys.modules["torchvision" + name] = MagicMock()  # imported by both for networks that are not used here

import piq  # noqa: E402
import piqa  # noqa: E402
import torch  # noqa: E402

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
from metrics_pairs import EXPECTED, KINDS, SHAPES, pairs  # noqa: E402


def main() -> None:
    """Writes the file."""
    expected: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        for size, channels in SHAPES:
            x, y = (torch.tensor(a).permute(0, 3, 1, 2).contiguous() for a in pairs(kind, size, channels))
            each = {"reduction": "none"}
            values = {
                "psnr": piqa.PSNR(**each)(x, y),
                "ssim": piqa.SSIM(n_channels=channels, **each)(x, y),
                "ms_gmsd": piq.multi_scale_gmsd(x, y, **each),
                "haarpsi": piq.haarpsi(x, y, **each),
                "mdsi": piq.mdsi(x, y, **each),
            }
            if size >= 161:
                values["ms_ssim"] = piqa.MS_SSIM(n_channels=channels, **each)(x, y)
            expected[f"{kind}_{size}_{channels}"] = {
                name: [round(float(value), 6) for value in scores] for name, scores in values.items()
            }
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
