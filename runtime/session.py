# SPDX-License-Identifier: Apache-2.0
"""The public front: open a package, stream or render an avatar, prepare avatars."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from .audio import FPS, SAMPLE_RATE, check_speech, load_speech, video_frame_count
from .avatar import Avatar, write_avatar
from .canvas import Canvas, check_shape
from .chunks import VideoChunk
from .engine import COMPUTE_CHOICES
from .errors import EdgereelsError, PackageError, UsageError
from .live import Live
from .live_outputs import Output
from .live_reports import ChunkMade
from .live_room import LiveRoom
from .live_settings import lesser_settings, live_settings
from .loudness import normalise_loudness
from .machine import processor_name, usable_cores
from .model_package import ModelPackage
from .observe import Observe
from .passes import Passes
from .placement import Asked, OnCompile, Placement, check_device
from .planner import Plan, check_settings, plan
from .playout_types import LatePolicy
from .prepare import Preparation, find_avatar
from .render_files import check_targets
from .report import EngineReport, RenderReport
from .sampler import Draws, RecordedDraws, SeededDraws, draw_shapes
from .shapes import LATENT_CHANNELS, VAE_STRIDE, StreamSize, encoder_shapes, stream_shapes
from .sinks import ArraySink, LinesSink, Mp4Sink, Sink, import_av
from .sources import Source
from .stream import Stream
from .stream_settings import StreamSettings, as_usage, check_size
from .tables import RopeGrid, rope_tables
from .timing import Trace

logger = logging.getLogger(__name__)

DEFAULT_SEED = 42
"""The published pipeline's default."""

Samples = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class _ReadyStream:
    """A stream that has been checked and prepared, before its first denoising step."""

    chunks: Iterator[VideoChunk]
    sound: Samples
    frame_count: int
    height: int
    """Of the frames that come out, pixels."""
    width: int
    """Of the frames that come out, pixels."""
    box_size: tuple[int, int] | None
    """(height, width) of what the network makes, where a canvas surrounds it."""


class AvatarSession:
    """An open package. Use it with `with`; it runs one stream at a time.

    A session is not to be used from several threads at once: a second stream raises `EdgereelsError` while the first
    is running. Several sessions may run in several threads, each with its own `threads`. The interpreter lock is
    free while an engine works.
    """

    thread_safe = False

    def __init__(
        self,
        package: ModelPackage,
        asked: Asked,
        *,
        observe: Observe | None = None,
        on_compile: OnCompile | None = None,
    ) -> None:
        self.package = package
        self._asked = asked
        self._on_compile = on_compile
        self._placement = Placement(package, asked, observe=observe)
        self._busy = threading.Lock()

    @classmethod
    def open(
        cls,
        package: str | Path = "default",
        *,
        device: str = "cpu",
        threads: int | None = None,
        compute: str = "auto",
        verify: str = "full",
        place: Mapping[str, str] | None = None,
        allow_fallback: bool = False,
        observe: Observe | None = None,
        on_compile: OnCompile | None = None,
    ) -> Self:
        """Open a package on a device.

        Args:
            package: its folder, or "default" for the embedded one.
            device: cpu, onnxruntime:CPU, cuda:N, openvino:CPU, openvino:GPU, openvino:NPU or auto.
            threads: all engines together use at most this many; default, and never more: the cores this process may
                use. Reports say how many ran.
            compute: arithmetic precision of the transformer and the VAE: auto, f32, bf16 or f16.
            verify: "full" compares every file's digest, "size" only sizes.
            place: subnetwork or graph -> a device of its own.
            allow_fallback: let the best CPU engine take over where a device can't be had; the report and the trace say
                where that happened. Otherwise it is an error.
            observe: called after every run with (graph, feeds, outputs), arrays that are valid during the call only.
            on_compile: called with (graphs compiled, graphs in all, graph) where an engine has to compile: before the
                first step of a stream at sizes that it hasn't seen yet.

        Raises:
            PackageError: the package is damaged, incomplete or unsafe.
            EngineError: the device or the precision is not to be had.
            UsageError: an argument that makes no sense.
        """
        check_device(device)
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}; expected at least 1")
        if compute not in COMPUTE_CHOICES:
            raise UsageError(f"compute {compute!r} is unknown; expected one of {', '.join(COMPUTE_CHOICES)}")
        if threads is not None and threads > usable_cores():
            logger.info("threads is %d, this process may use %d cores: as many run", threads, usable_cores())
        asked = Asked(
            device=device,
            threads=threads or 0,
            compute=compute,
            place=dict(place or {}),
            allow_fallback=allow_fallback,
        )
        session = cls(ModelPackage.open(package, verify=verify), asked, observe=observe, on_compile=on_compile)
        session._placement.require_devices()
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines. Using the session afterwards raises `EngineError`; closing twice is not an error."""
        self._placement.close()

    @property
    def avatars(self) -> tuple[str, ...]:
        """Names of the avatars inside the package."""
        return tuple(self.package.manifest.avatars)

    @property
    def engines(self) -> dict[str, tuple[str, str]]:
        """Name of every graph that is open -> (provider, precision): what was got."""
        return {graph: (got.provider, got.precision) for graph, got in self._placement.got().items()}

    @property
    def engine_reports(self) -> dict[str, EngineReport]:
        """Name of every graph that is open -> what was asked and what was got, whole."""
        return self._placement.got()

    def stream(
        self,
        *,
        audio: str | Path | Samples,
        avatar: str | Path | Avatar | None = None,
        image: str | Path | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        noise: str | Path | None = None,
        canvas: bool | None = None,
        trace: Trace | None = None,
        **settings: Any,
    ) -> Iterator[VideoChunk]:
        """Yield chunks of video as they are made.

        Everything is checked before the first chunk is asked for. Closing the generator early leaves nothing running.

        Args:
            audio: a sound file, or mono samples at 16 kHz.
            avatar: an avatar file, the name of one inside the package, or an `Avatar`; default: the package's first.
            image: a portrait instead of an avatar.
            prompt: what the key-frame pass shows.
            negative_prompt: what guidance leads away from.
            seed: of the random draws; default 42.
            noise: a file with recorded draws instead.
            canvas: show the avatar's whole still with what the network makes in its box (True), or the network's frames
                alone (False); None: the still where there is one and no size is asked for. A chunk of 24 frames of
                1080x1080 takes 84 MB.
            trace: where to record what happens when.
            settings: fields of `StreamSettings`.

        Raises:
            MediaError: the sound or the picture can't be used.
            PackageError: the package lacks something that this needs.
            NoiseError: the recorded draws don't fit.
            UsageError: settings that don't go together.
        """
        ready = self._ready(
            audio=audio,
            avatar=avatar,
            image=image,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            noise=noise,
            canvas=canvas,
            trace=trace or Trace(keep=False),
            **settings,
        )
        return self._run(ready)

    def render(
        self,
        *,
        audio: str | Path | Samples,
        out: str | Path | None = None,
        frames: str | Path | None = None,
        trace: str | Path | None = None,
        on_progress: Progress | None = None,
        **arguments: Any,
    ) -> RenderReport:
        """Write a video with sound, an array of frames, or both; arguments as for `stream`.

        All files get their names together at the end; an error leaves none. `Stopped` leaves shorter ones.

        Args:
            audio: a sound file, or mono samples at 16 kHz.
            out: mp4 file to write.
            frames: .npy file to write: uint8 (T, H, W, 3) RGB.
            trace: .jsonl file to write.
            on_progress: called with (frames written, frames in all).
            arguments: as for `stream`.

        Raises:
            OutputError: a file can't be written.
            MissingExtraError: a video is asked for, and what writes it is not installed.
            UsageError: two of the files are the same, or one lies in the package.
        """
        targets = {"out": out, "frames": frames, "trace": trace}
        made = {name: Path(path) for name, path in targets.items() if path is not None}
        read = {"audio": audio} | {name: arguments.get(name) for name in ("image", "avatar", "noise")}
        check_targets(made, inputs=read, packages=[self.package.root])
        if "out" in made:
            import_av()
        record = Trace(keep=False)
        with ExitStack() as stack:
            lines = stack.enter_context(LinesSink(made["trace"])) if "trace" in made else None
            record.on_event = lines.write if lines else None
            ready = self._ready(audio=audio, trace=record, **arguments)
            sinks = [stack.enter_context(sink) for sink in self._sinks(ready, made)]
            written = 0
            for chunk in self._run(ready):
                for sink in sinks:
                    with record.span("sink", chunk=chunk.index, sink=type(sink).__name__):
                        sink.write(chunk.frames)
                written += len(chunk.frames)
                if on_progress is not None:
                    on_progress(written, ready.frame_count)
            for sink in sinks:
                with record.span("sink_finish", sink=type(sink).__name__):  # encoders hold frames back until here
                    sink.finish()
            report = self._report(ready, record, files=tuple(made[name] for name in ("out", "frames") if name in made))
            record.note("report", **report.as_dict())
            if lines:
                lines.finish()  # like the others before any of them gets its name: a disk may be full only now
        return report

    def live(
        self,
        *,
        latency: str = "balanced",
        avatar: str | Path | Avatar | None = None,
        canvas: bool | None = None,
        seed: int | None = None,
        source: Source | None = None,
        outputs: Sequence[Output] = (),
        speakers: bool | int | str = False,
        late: LatePolicy | str | None = None,
        ends: Literal["mark", "silence"] | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        on_chunk: Callable[[ChunkMade], None] | None = None,
    ) -> Live:
        """Return a live stream: sound arrives while frames leave. It runs inside `with`.

        Args:
            latency: low, balanced or quality: windows of 17, 33 or 81 frames, see `Live.latency`.
            avatar: as of `stream`.
            canvas: as of `stream`.
            seed: of the random draws; default 42.
            source: where sound comes from; default: the program pushes it.
            outputs: where frames and sound go to: `to_window`, `to_file`, `to_callback`, any number.
            speakers: play the sound, on the default device (True) or one by its number or name, which is the master
                clock then. Otherwise the machine's own clock is, and nothing is heard.
            late: what becomes of late frames; default: they are shown late, and the rest moves with them.
            ends: how utterances end: `mark`, by the program, or `silence`, by their level. Default: mark for pushed
                sound, silence for any other source.
            on_event: called with every event, see docs/embedding.md; from any thread.
            on_chunk: called with every chunk that was made, from the thread that makes them.

        Raises:
            PackageError: the package lacks something that this needs.
            UsageError: an unknown word, or a canvas that is not there.
        """
        with as_usage():
            draws_seed = DEFAULT_SEED if seed is None else seed
            SeededDraws(draws_seed)
        own = self.package.manifest.settings
        wanted = live_settings(latency, own)
        if own.fps != FPS:
            raise UsageError(
                f"{self.package.name} makes {own.fps} frames per second; a live stream has {FPS}: render it"
            )
        self.package.require("audio_encoder", "vae_encoder", "vae_decoder", "dit", "finish")
        face = find_avatar(self.package, avatar=avatar)
        if canvas and face.canvas is None:
            _canvas(face, wanted=True, asked_size=None, size=(0, 0))  # says so
        room = LiveRoom(
            self.package,
            face,
            settings=(wanted, *lesser_settings(wanted, own)),
            seed=draws_seed,
            canvas_of=lambda size: _canvas(face, wanted=canvas, asked_size=None, size=size),
            placement=self._placement_for_live,
            release=self._busy.release,
            on_compile=self._on_compile,
        )
        return Live(
            room,
            source=source,
            outputs=outputs,
            speakers=speakers,
            late=late,
            ends=ends,
            on_event=on_event,
            on_chunk=on_chunk,
        )

    def _placement_for_live(self, anew: bool) -> Placement:
        """Return the engines for a live stream, which keeps other streams out; `anew`: after a fault."""
        if anew:
            self._placement.close()
            self._placement = Placement(self.package, self._asked)
        elif not self._busy.acquire(blocking=False):
            raise _already_running()
        return self._placement

    def prepare_avatar(
        self,
        image: str | Path,
        out: str | Path,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        size: tuple[int, int] | None = None,
        window: int | None = None,
    ) -> Avatar:
        """Write an avatar file: the portrait and whatever of it is costly and constant.

        Args:
            image: the portrait.
            out: file to write.
            prompt: what the key-frame pass shows.
            negative_prompt: what guidance leads away from.
            size: (height, width) to prepare for; default: the package's nearest to the portrait.
            window: frames in a window to prepare for; default: the package's.

        Raises:
            MediaError: the picture can't be used.
            OutputError: the file can't be written.
            PackageError: the package lacks something that this needs.
            UsageError: a size or a window that does not exist, or `out` is the picture or lies in the package.
        """
        check_targets({"out": Path(out)}, inputs={"image": image}, packages=[self.package.root])
        own = self.package.manifest.settings
        if window is None:
            window = own.window
        with as_usage():
            check_settings(window=window, motion=1, drop=0)
        check_size(size)
        self.package.require("vae_encoder", "dit")
        face = find_avatar(self.package, image=image)
        preparation = Preparation(self.package, self._placement, face, size=size, trace=Trace(keep=False))
        height, width = preparation.size
        with _as_package_error(self.package.name):
            shapes = encoder_shapes(self.package.manifest, StreamSize(height, width, window, ()))
        self._placement.freeze(shapes, on_compile=self._on_compile)
        avatar = preparation.avatar(prompt=prompt, negative_prompt=negative_prompt, window=window)
        write_avatar(Path(out), avatar)
        return avatar

    def _run(self, ready: _ReadyStream) -> Iterator[VideoChunk]:
        if not self._busy.acquire(blocking=False):
            raise _already_running()
        try:
            yield from ready.chunks
        finally:
            self._busy.release()

    def _ready(
        self,
        *,
        audio: str | Path | Samples,
        trace: Trace,
        avatar: str | Path | Avatar | None = None,
        image: str | Path | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        seed: int | None = None,
        noise: str | Path | None = None,
        canvas: bool | None = None,
        **settings: Any,
    ) -> _ReadyStream:
        """Check everything, then compute what a stream needs before its first step."""
        if self._busy.locked():  # before engines work for it, and its trace takes the running one's place
            raise _already_running()
        wanted = StreamSettings(**settings)
        if avatar is not None and image is not None:
            raise UsageError("an avatar and a picture were given; expected one of them")
        own = self.package.manifest.settings
        sampling = wanted.resolved(own)
        draws = _seeded(seed, noise)
        self.package.require("audio_encoder", "vae_encoder", "vae_decoder", "dit", "finish")
        sound = normalise_loudness(check_speech(audio) if isinstance(audio, np.ndarray) else load_speech(audio))
        made = plan(
            video_frame_count(len(sound), fps=own.fps),
            window=sampling.window,
            motion=sampling.motion,
            drop=sampling.drop,
        )
        face = find_avatar(self.package, avatar=avatar, image=image)
        self._placement.record_to(trace)
        preparation = Preparation(self.package, self._placement, face, size=wanted.size, trace=trace)
        height, width = preparation.size
        around = _canvas(face, wanted=canvas, asked_size=wanted.size, size=preparation.size)
        latent = (LATENT_CHANNELS, made.key_pass.latent_frames, height // VAE_STRIDE, width // VAE_STRIDE)
        if noise is not None:
            draws = RecordedDraws(Path(noise), shapes=_draw_shapes(made, latent, steps=len(sampling.timesteps) - 1))
        self._freeze(made, height=height, width=width)
        features = preparation.hear(sound)
        conditions = preparation.conditions(
            prompt=prompt, negative_prompt=negative_prompt, guidance=sampling.guidance, window=sampling.window
        )
        with _as_package_error(self.package.name):
            rope = rope_tables(RopeGrid(latent[1], latent[2] // 2, latent[3] // 2), head_dim=preparation.dit.head_dim)
        passes = Passes(
            engines=self._placement,
            conditions=conditions,
            schedule=preparation.schedule(sampling.timesteps),
            rope=rope,
            guidance=sampling.guidance,
            draws=draws,
            trace=trace,
        )
        stream = Stream(made, passes=passes, features=features, fps=own.fps)
        if around is None:
            return _ReadyStream(stream.chunks(), sound, made.audio_frames, height, width, None)
        chunks = self._on_canvas(stream.chunks(), around, trace=trace)
        return _ReadyStream(chunks, sound, made.audio_frames, *around.size, preparation.size)

    def _on_canvas(self, chunks: Iterator[VideoChunk], canvas: Canvas, *, trace: Trace) -> Iterator[VideoChunk]:
        for chunk in chunks:
            with trace.span("canvas", chunk=chunk.index):
                frames = canvas.compose(chunk.frames, threads=self._placement.threads)
            yield replace(chunk, frames=frames)

    def _freeze(self, made: Plan, *, height: int, width: int) -> None:
        """Let engines compile for the shapes of a stream, in one go."""
        decoded = tuple(window.decode_latents for window in made.passes)
        size = StreamSize(height=height, width=width, window=made.key_pass.window, decoded=decoded)
        with _as_package_error(self.package.name):
            shapes = stream_shapes(self.package.manifest, size)
        self._placement.freeze(shapes, on_compile=self._on_compile)

    def _sinks(self, ready: _ReadyStream, made: Mapping[str, Path]) -> Iterator[Sink]:
        """Yield what takes the frames, unopened."""
        if "frames" in made:
            yield ArraySink(made["frames"], height=ready.height, width=ready.width)
        if "out" in made:
            package = self.package
            yield Mp4Sink(
                made["out"],
                height=ready.height,
                width=ready.width,
                fps=package.manifest.settings.fps,
                sound=ready.sound,
                sample_rate=SAMPLE_RATE,
                comment=self.package.credit,
                threads=self._placement.threads,
            )

    def _report(self, ready: _ReadyStream, trace: Trace, *, files: tuple[Path, ...]) -> RenderReport:
        engines = self._placement.got()
        return RenderReport(
            files=files,
            frame_count=ready.frame_count,
            height=ready.height,
            width=ready.width,
            fps=self.package.manifest.settings.fps,
            wall_s=trace.last_end_s - trace.first_start_s["dit"],
            device=self._asked.device,
            provider=engines["dit"].provider,
            precision=engines["dit"].precision,
            threads=self._placement.threads,
            machine=processor_name(),
            package_digest=self.package.digest,
            engines=engines,
            box_size=ready.box_size,
        )


def _canvas(
    face: Avatar, *, wanted: bool | None, asked_size: tuple[int, int] | None, size: tuple[int, int]
) -> Canvas | None:
    """Return what frames are shown in, or None for the network's own.

    Raises:
        UsageError: a canvas is asked for where there is none, or at a size of another shape than its box.
    """
    if wanted is None:
        wanted = face.canvas is not None and asked_size is None
    if not wanted:
        return None
    if face.canvas is None:
        raise UsageError(f"the canvas is on, and {face.name} has no still; leave it out, or name an avatar with one")
    with as_usage():
        check_shape(face.canvas.box, size=size)
    return face.canvas


@contextmanager
def _as_package_error(package: str) -> Iterator[None]:
    """Turn the ValueError of numbers that contradict each other into `PackageError`."""
    try:
        yield
    except ValueError as error:
        raise PackageError(f"{package} does not make sense: {error}") from error


def _already_running() -> EdgereelsError:
    return EdgereelsError("this session is already running a stream; finish or close that one, or open another session")


def _seeded(seed: int | None, noise: str | Path | None) -> Draws:
    """Return the draws of a seed; those of a file are read once the plan says how many there must be."""
    if seed is not None and noise is not None:
        raise UsageError("a seed and recorded draws were given; expected one of them")
    with as_usage():
        return SeededDraws(DEFAULT_SEED if seed is None else seed)


def _draw_shapes(made: Plan, latent: tuple[int, int, int, int], *, steps: int) -> list[tuple[int, ...]]:
    motion_latents = [window.motion_latents for window in made.passes]
    injected = [count > 0 for count in motion_latents]
    return draw_shapes(injected, latent=latent, motion_latents=max(motion_latents), steps=steps)
