"""What `lightning_styles.sheet` drew, read back."""

from torch import Tensor

LABEL, GAP = 24, 2  # px above each picture, around picture and label


def cells(sheet: Tensor, rows: int, columns: int, size: int) -> Tensor:
    """Pictures (rows, columns, 3, size, size) of a sheet (3, H, W), which shows them whole times as large."""
    grid = sheet.unflatten(1, (rows, -1)).unflatten(3, (columns, -1)).permute(1, 3, 0, 2, 4)
    shown = grid[..., LABEL + GAP : -GAP, GAP:-GAP]
    times = shown.shape[-1] // size
    assert shown.shape[-2:] == (times * size, times * size)
    assert shown.shape[-1] >= 112, "labels have room"
    small = shown[..., ::times, ::times]
    assert (shown == small.repeat_interleave(times, -1).repeat_interleave(times, -2)).all()
    return small
