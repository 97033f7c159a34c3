"""docs/gallery.md shows every example that leaves a picture, and its pictures are small."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "docs" / "gallery").is_dir():
    pytest.skip("the gallery is not here", allow_module_level=True)
Image = pytest.importorskip("PIL.Image")
sys.path.insert(0, str(ROOT / "tools"))

import gallery  # noqa: E402

PAGE = (ROOT / "docs" / "gallery.md").read_text()


def programs_with_a_picture() -> set[str]:
    """Examples that can be run and take `--output`, by themselves or by the options that examples share."""
    sources = {path.name: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    return {
        name
        for name, source in sources.items()
        if "__main__" in source and re.search(r'option_parser\(|"--output"', source)
    }


def test_every_example_with_a_picture_is_run() -> None:
    assert {program for program, *_ in gallery.RUNS.values()} == programs_with_a_picture()


def test_the_page_has_every_picture_and_its_command() -> None:
    assert re.findall(r"^!\[[^\]]+\]\(gallery/(\w+)\.png\)$", PAGE, re.MULTILINE) == list(gallery.RUNS)
    commands = re.findall(r"^    python examples/(.+)$", PAGE, re.MULTILINE)
    assert [tuple(shlex.split(command)) for command in commands] == list(gallery.RUNS.values())


def test_pictures_are_small() -> None:
    files = {path.name: path.stat().st_size for path in gallery.GALLERY.iterdir()}
    assert set(files) == {f"{name}.png" for name in gallery.RUNS}
    assert max(files.values()) <= 100_000 and sum(files.values()) <= 1_200_000


def test_a_picture_is_made_small(tmp_path: Path) -> None:
    wide = Image.radial_gradient("L").resize((2 * gallery.WIDTHS[0], 300)).convert("RGB")
    wide.putpixel((0, 0), (255, 0, 0))
    wide.save(tmp_path / "wide.png")
    (tmp_path / "small.png").write_bytes(gallery.small(tmp_path / "wide.png"))
    with Image.open(tmp_path / "small.png") as image:
        assert image.size == (gallery.WIDTHS[0], 150) and image.mode == "P"
    assert (tmp_path / "small.png").stat().st_size <= gallery.LARGEST


@pytest.mark.parametrize("status", [0, 1])
def test_a_picture_is_replaced_where_the_example_holds(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "made.py").write_text(
        "import sys\nfrom PIL import Image\n"
        "assert sys.argv[1:4] == ['--kind', 'red', '--quick'] and sys.argv[4] == '--output'\n"
        f"Image.new('RGB', (9, 5), 'red').save(sys.argv[5])\nsys.exit({status})\n"
    )
    monkeypatch.setattr(gallery, "ROOT", tmp_path)
    monkeypatch.setattr(gallery, "RUNS", {"made": ("made.py", "--kind", "red")})
    (tmp_path / "made.png").write_bytes(b"old")
    assert gallery.main(["made", "--quick", "--output", str(tmp_path)]) == status
    assert ((tmp_path / "made.png").read_bytes() == b"old") == (status == 1)
    assert re.search(rf"^made +\d+ s +{status}$", capsys.readouterr().out, re.MULTILINE)


def test_a_picture_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gallery.main(["mpi_data_parallel"])
    assert "no picture mpi_data_parallel" in capsys.readouterr().err


def test_quick_pictures_do_not_replace_the_pages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gallery.main(["draw", "--quick"])
    assert "--output" in capsys.readouterr().err
