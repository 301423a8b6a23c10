"""What happens beside training: previews, results, records, measurements, averaged weights."""

from callbacks.ema import EMA
from callbacks.image_writer import ImageWriter
from callbacks.previews import Previews
from callbacks.run_record import RunRecord
from callbacks.throughput import Throughput

__all__ = ["EMA", "ImageWriter", "Previews", "RunRecord", "Throughput"]
