"""Names that the command line offers; apart, as the rest of the package takes seconds to load."""

COMPARED = ("rtn", "kmeans", "squeezellm", "gptq", "awq", "gptvq-2d")  # at equal true bits
METHODS = (*COMPARED, "gptvq-1d", "gptvq-4d", "spqr")
PROFILES = ("c4-100x512", "c4-128x2048", "pile-128x512", "wikitext2-128x2048")
DEFAULT_FORMATS = (
    "rtn-w{b}",
    "kmeans-w{b}",
    "squeezellm-w{b}",
    "squeezellm-w{b}-s0.05",
    "squeezellm-w{b}-s0.45",
    "gptq-w{b}",
    "awq-w{b}-g128",
)
