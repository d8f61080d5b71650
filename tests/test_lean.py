"""A request imports only what it uses: the packages that an edit on the command line may load, and no others."""

import json
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

# Whatever diffusers, transformers and huggingface_hub need themselves, by the names of their modules.
MAY_BE_LOADED = set(
    re.findall(
        r"\w+",
        """
    ace PIL numpy pydantic pydantic_core annotated_types annotated_doc typing_extensions typing_inspection typer click
    rich pygments markdown_it mdurl shellingham colorama safetensors psutil regex tqdm yaml packaging torch torchgen
    sympy mpmath accelerate diffusers transformers tokenizers ftfy wcwidth jinja2 markupsafe dill google backports
    importlib_metadata zipp setuptools pkg_resources attr attrs six huggingface_hub hf_xet filelock fsspec requests
    urllib3 httpx httpx2 httpcore httpcore2 h11 h2 hpack hyperframe anyio sniffio certifi idna truststore brotli
    charset_normalizer cython_runtime
    """,
    )
)
OPTIONAL = {"peft", "scipy", "torchao", "gguf", "onnxruntime", "bitsandbytes", "cv2", "skimage", "fastapi", "av"}
CODE = """
import json, sys
from ace.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = {name.split(".")[0] for name, module in list(sys.modules.items()) if module is not None}
print(json.dumps([sorted(loaded), sys.modules.get("peft", 0) is None]))
"""


def loaded_by(folder: Path, *arguments: str) -> set[str]:
    """The top packages that an `ace` command has imported at its end."""
    command = [sys.executable, "-c", CODE, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    loaded, still_hidden = json.loads(done.stdout.splitlines()[-1])
    assert not still_hidden, "what was hidden while the model loaded can be imported afterwards"
    return set(loaded)


def test_an_edit_loads_no_package_that_it_does_not_use(tmp_path):
    Image.new("RGB", (64, 64), "skyblue").save(tmp_path / "in.png")
    edit = ("edit", "in.png", "make it green", "--model", "ace-tiny", "--seed", "1", "--steps", "1")
    found = loaded_by(tmp_path, *edit, "-o", "out.png", "-q")
    assert (tmp_path / "out.png").is_file()
    assert not found & OPTIONAL
    strangers = {name for name in found - MAY_BE_LOADED - sys.stdlib_module_names if not name.startswith("_")}
    assert not strangers, "an edit imports these now: is each needed?"


def test_only_the_command_of_its_own_process_hides_anything():
    from ace.cli.lean import OPTIONAL as hidden
    from ace.cli.lean import unused, without
    from ace.conversation import Loading
    from ace.families import find_family

    assert unused(find_family("ace-tiny"), Loading()) == ()  # here the process is the tests'
    names = tuple(f"ace_no_such_package_{number}" for number in range(2))
    with without((*names, "json")):
        assert sys.modules[names[0]] is None
        assert sys.modules["json"] is json, "what is imported already stays"
    assert not set(names) & sys.modules.keys()
    assert {"peft", "torchao", "scipy"} <= set(hidden)
