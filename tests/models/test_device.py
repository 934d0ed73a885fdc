"""Where the default precision stands."""

from llmft.models.device import choose_precision, list_precisions


def test_the_default_precision_comes_first() -> None:
    precisions = list_precisions()
    assert precisions[0] == choose_precision("auto")
    assert "float32" in precisions
