"""ComfyUI nodes of ACE and ACE++: hands ComfyUI the nodes of the installed package, and says so if it is missing."""

try:
    from ace.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "ace":
        raise
    raise ModuleNotFoundError(
        "the ACE nodes need the package ace-allround in ComfyUI's Python: run `python -m pip install --no-deps "
        "ace-allround` with that Python (for ACE Loader and ACE Chat `python -m pip install ace-allround`, which may "
        "raise other packages' versions) and start ComfyUI again",
        name="ace",
    ) from None

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
