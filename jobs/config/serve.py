"""Settings of the endpoint."""

from pydantic import Field, PositiveFloat, PositiveInt

from jobs.config.base import JobConfig, PrecisionChoice


class EndpointSettings(JobConfig):
    """What the application is built from: the arguments of `jobs.serving.app:build_app` in a `serve deploy` file."""

    bundle_uri: str
    """The trained counter, as `jobs.train` writes it. Nothing picks the latest one for you."""

    output_uri: str | None = None
    """The output of `jobs.audit` whose recounts of the last 30 days the record model is learned from; without it, or
    while no night of them has 90 % of its random bins resolved, the model is assumed."""

    precision: PrecisionChoice = "auto"
    """Arithmetic of the network; auto is what the audit takes on the same hardware. int8 is for CPUs: evaluate the bundle
    with it first."""

    batch_size: PositiveInt | None = None
    """Photos per padded batch; by default the audit's (32 on a CPU, 256 on a GPU with the memory for it), so that both give the same bits.
    A batch costs the same however few photos wait, so on a CPU with few clients a smaller one answers sooner."""

    max_replicas: PositiveInt | None = None
    """How many networks may run at once; they follow the length of the queue. By default one per GPU,
    else one per so many CPUs as the smallest node has."""

    max_waiting: PositiveInt | None = None
    """Photos in flight at which a front replica answers 429; four batches by default, and at least 64. It does so too when
    the bodies that it holds have 512 MiB together."""

    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1, le=512 * 1024**2)
    """Beyond it a request is answered 413. One photo may have 32 MiB and 30 million pixels at most (12.5
    million where it is no ordinary JPEG)."""

    request_timeout_s: PositiveFloat = 30.0
    """A body that has not arrived by then is answered 408, a photo that is not counted by then 504."""


class ServeConfig(EndpointSettings):
    """Answers a photo with the number of items in it, over HTTP."""

    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 for every interface (set STOCK_AUDIT_TOKEN then)."""

    port: int = Field(default=8000, ge=1, le=65535)
    """The port to listen on."""
