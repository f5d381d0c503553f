"""`python tests/gguf_convert.py LLAMA_CPP FOLDER OUT`: llama.cpp's own converter, for the demo world's tokenizer.

The converter knows tokenizers by a hash of what they do and refuses others; which one it takes does not matter here.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Converts one folder."""
    source, folder, out = (Path(word) for word in sys.argv[1:])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    from conversion.base import TextModel  # type: ignore[import-not-found]
    from conversion.llama import LlamaModel  # type: ignore[import-not-found]

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    LlamaModel.set_vocab = lambda self: self._set_vocab_gpt2()
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(out), "--outtype", "f32"]
    runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
