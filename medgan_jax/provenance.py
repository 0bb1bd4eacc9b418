"""What a generated image says of itself, in its file: that it is synthetic, and what drew it.

Two marks. One is for everybody: XMP with the IPTC's Digital Source Type "trained algorithmic media", by which picture
archives and web pages recognise images of a trained model. The other is ours: a line of JSON from which the image can
be drawn again, see `verification`. Nothing in it is of a patient: of the training images there is a digest.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from medgan_jax import __version__

KEYWORD = "medgan_jax"  # of our text in a PNG file
XMP = "XML:com.adobe.xmp"  # its keyword there
SENTENCE = "Synthetic image, shows no patient"
_TERM = "trainedAlgorithmicMedia"
_PACKET = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{_TERM}" '
    'xmp:CreatorTool="{software}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_SOFTWARE = f"medgan_jax {__version__}"


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where one image comes from.

    Attributes:
      generator: digest of its weights.
      step: of its training.
      seed: of the latents; None where they were the caller's own.
      index: number of the image.
      label: its class; "" where the generator has learned none.
      truncation: of the latents, see `sampling.seeded_latents`.
      training_set: digest of the training images; "" where it is not known.
      software: that drew it.
      attempt: which draw of the number it is, above 0 where a guard rejected others, see `sampling.accepted_attempts`.
      trained_through: the network that the training saw its images through, which must not judge them; "" for none.
    """

    generator: str
    step: int
    seed: int | None
    index: int
    label: str = ""
    truncation: float | None = None
    training_set: str = ""
    software: str = _SOFTWARE
    attempt: int = 0
    trained_through: str = ""

    def as_json(self) -> str:
        """One line; without `attempt` and `trained_through` where they say nothing."""
        optional = ("attempt", "trained_through")
        values = dataclasses.asdict(self).items()
        return json.dumps({name: value for name, value in values if value or name not in optional})


def from_json(text: str) -> Provenance | None:
    """What `Provenance.as_json` wrote; None of any other text."""
    try:
        found = Provenance(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    fits = isinstance(found.index, int) and found.index >= 0 and isinstance(found.seed, int | None)
    fits = fits and isinstance(found.truncation, float | None) and isinstance(found.step, int)
    fits = fits and isinstance(found.attempt, int)
    texts = (found.generator, found.label, found.software, found.trained_through)
    return found if fits and all(isinstance(text, str) for text in texts) else None


def xmp(origin: Provenance | None) -> str:
    """The XMP packet of a synthetic movie; its source is what drew the frames, if that is one generator."""
    source = f' xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source={quoteattr(origin.as_json())}' if origin else ""
    return _PACKET.format(software=_SOFTWARE).replace("/></rdf:RDF>", f"{source}/></rdf:RDF>")


def png_text(provenance: Provenance | None = None) -> dict[str, str]:
    """By keyword, the texts of a PNG file of one image, or of a picture of several."""
    software = provenance.software if provenance else _SOFTWARE
    texts = {"Software": software, "Description": SENTENCE, XMP: _PACKET.format(software=software)}
    return texts | ({KEYWORD: provenance.as_json()} if provenance else {})


def is_synthetic(info: Mapping[Any, Any]) -> bool:
    """Whether the texts of an image file, as Pillow has them in `Image.info`, mark it as synthetic."""
    texts = (info.get(name) or "" for name in (XMP, "xmp", "comment"))
    spoken = "".join(text if isinstance(text, str) else bytes(text).decode(errors="replace") for text in texts)
    return KEYWORD in info or _TERM in spoken or SENTENCE in spoken
