"""``python -m chatgym`` is the command ``chatgym``."""

from chatgym.cli import main

if __name__ == "__main__":
    main()
