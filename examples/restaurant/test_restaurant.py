"""The plugin's own test: one call, see docs/plugins.md."""

from chatgym_restaurant import SCENARIO

from chatgym.testing import check_scenario


def test_the_restaurant_keeps_to_what_a_scenario_has_to_do() -> None:
    """Check everything."""
    check_scenario(SCENARIO)
