"""What `chatgym.plugins` finds by the entry point."""

from chatgym.hookspecs import Register, hookimpl


@hookimpl
def register_scenarios(register: Register) -> None:
    """Register the scenario; it is imported when somebody asks for it."""
    register("restaurant", "chatgym_restaurant:SCENARIO")
