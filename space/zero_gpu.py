"""ZeroGPU, a free kind of Space, accepts only an app with a function under `spaces.GPU`. The answers need no GPU."""


def register() -> bool:
    """Register one function with ZeroGPU; return False where the platform's package `spaces` is not installed.

    No answer calls that function, so visitors spend none of their GPU quota.
    """
    try:
        import spaces
    except ImportError:
        return False

    @spaces.GPU  # type: ignore[untyped-decorator]
    def unused() -> None:
        """Exist: ZeroGPU looks for such a function when the app starts."""

    return True
