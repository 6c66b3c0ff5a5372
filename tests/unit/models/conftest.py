import pytest
from lit_semantic_peft.models import BaseModel

from fixtures.gguf_files import write_gguf


@pytest.fixture
def gguf_file(tiny_model, tmp_path):
    base = BaseModel(str(tiny_model))
    (tmp_path / "files").mkdir()
    return write_gguf(tmp_path / "files" / "tiny.gguf", base.load(), base.load_tokenizer())
