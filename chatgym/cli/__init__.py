"""The command ``chatgym``: one module per group of commands, each importing what it needs when it runs."""


def main() -> None:
    """Run the command line."""
    from chatgym.cli.app import app

    app()
