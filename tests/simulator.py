"""A simulated warehouse for the statistics: what is in the bins, what records say, what a camera counts.

Quantities have ABID's class shares. The camera sees the quantity on a line, blurred more the more there is, with
photos of varying difficulty, blind photos (2.9 % of the non-empty), a hidden item (5 %) and photos of another bin
(2 %); its blur is fitted to the accuracy and RMSE per count published for a ResNet-34 on ABID (abid_challenge).
The network answers P(record | photo) exactly as training on noisy records would teach it, distorted as networks
are (noise on the logits, overconfident), and is then calibrated by temperature on 5,000 other records.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from model.posterior import Assessor
from model.record_errors import DEFAULT_SIZES, SIZE_STEPS

ABID_COUNTS = (8735, 37049, 69241, 81107, 72496, 56107)
BLIND_SHARE = 0.029
HIDDEN_SHARE = 0.05
LOGIT_NOISE = 0.25
OVERCONFIDENCE = 0.6
# fitted to the two published rows
DIFFICULTY_SPREAD = 1.6
POSITION_POWER = 1.69
BLUR_FLOOR = 0.0239
BLUR_SCALE = 0.6856
BLUR_POWER = 2.224


@dataclass(frozen=True)
class World:
    """One warehouse. `recorded_to_true`: stock moved after it was recorded; else records were mistaken.

    `quantity_shares`: of 0, 1, 2, ...; `top_class` K. `blur_factor` widens the camera's blur, `blind_share` of
    the photos of bins that are not empty show only that.
    """

    error_rate: float = 0.05
    recorded_to_true: bool = True
    foreign_share: float = 0.02
    blur_factor: float = 1.0
    blind_share: float = BLIND_SHARE
    training_noise: float = 0.05
    quantity_shares: tuple[float, ...] = tuple(count / sum(ABID_COUNTS) for count in ABID_COUNTS)
    top_class: int = 5

    @property
    def kernel(self) -> np.ndarray:
        """P(true | recorded, wrong) or, the other way round, P(recorded | true, wrong); square over the quantities."""
        return size_kernel(len(self.quantity_shares), 1 if self.recorded_to_true else -1)

    @property
    def true_shares(self) -> np.ndarray:
        shares = np.array(self.quantity_shares)
        if not self.recorded_to_true:
            return shares
        return (1 - self.error_rate) * shares + self.error_rate * shares @ self.kernel


# a third of ABID's bins hold six or more: classes 0..6, quantities up to 12
LARGE_WORLD = World(
    quantity_shares=tuple(
        np.concatenate([np.array(ABID_COUNTS), 156_976 * 0.72 ** np.arange(7) / (0.72 ** np.arange(7)).sum()]) / 481_711
    ),
    top_class=6,
)


@dataclass(frozen=True)
class Bins:
    """Bins (n,) of one night; `probabilities` (n, K + 1) calibrated, `logits` before calibration."""

    expected_qty: np.ndarray
    true_qty: np.ndarray
    logits: np.ndarray
    temperature: float
    unit_value: np.ndarray = field(repr=False)

    @property
    def probabilities(self) -> np.ndarray:
        return softmax(self.logits / self.temperature, axis=1)

    @property
    def wrong(self) -> np.ndarray:
        return self.expected_qty != self.true_qty

    def __len__(self) -> int:
        return len(self.expected_qty)

    def take(self, rows: np.ndarray) -> "Bins":
        arrays = (self.expected_qty[rows], self.true_qty[rows], self.logits[rows])
        return Bins(*arrays, self.temperature, self.unit_value[rows])


@dataclass(frozen=True)
class Camera:
    """A network trained and calibrated in one world, then used in the same or another one."""

    trained_in: World
    temperature: float
    label_histogram: np.ndarray


def size_kernel(num_quantities: int, sign: int) -> np.ndarray:
    """Where an error of d leads, over quantities that exist: -1 40 %, +1 25 %, -2 12 %, +2 8 %, further 15 %: even,
    but when stock moves (sign 1) half of it leaves an empty bin."""
    start = np.arange(num_quantities)
    difference = (start[None, :] - start[:, None]) * sign
    kernel = np.zeros((num_quantities, num_quantities))
    for step, share in zip(SIZE_STEPS, DEFAULT_SIZES[:-1], strict=True):
        kernel[difference == step] = share
    far = np.abs(difference) >= 3
    even = far * DEFAULT_SIZES[-1] / np.maximum(far.sum(axis=1, keepdims=True), 1)
    if sign > 0:
        even[3:] /= 2
        even[3:, 0] += DEFAULT_SIZES[-1] / 2
    kernel += even
    return kernel / kernel.sum(axis=1, keepdims=True)


def draw_records(world: World, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Recorded and true quantities (n,)."""
    start = random.choice(len(world.quantity_shares), size, p=world.quantity_shares)
    end = (random.random(size)[:, None] > np.cumsum(world.kernel, axis=1)[start]).sum(axis=1)
    end = np.where(random.random(size) < world.error_rate, np.minimum(end, len(world.quantity_shares) - 1), start)
    return (start, end) if world.recorded_to_true else (end, start)


def count_photos(world: World, true_qty: np.ndarray, trained_in: World, random: np.random.Generator) -> np.ndarray:
    """P(true quantity | photo), (n, quantities), of a camera that knows the world it was trained in."""
    size, quantities = len(true_qty), np.arange(len(world.quantity_shares))
    foreign = random.random(size) < world.foreign_share
    seen = np.where(foreign, random.choice(len(quantities), size, p=world.true_shares), true_qty)
    hidden = (random.random(size) < HIDDEN_SHARE) & (seen > 0)
    blind = (random.random(size) < world.blind_share) & (seen > 0)
    difficulty = np.exp(DIFFICULTY_SPREAD * random.standard_normal(size))
    position, blur = place(quantities)
    width = trained_in.blur_factor * blur * difficulty[:, None]
    evidence = position[seen - hidden] + world.blur_factor * (
        blur[seen - hidden] * difficulty
    ) * random.standard_normal(size)
    density = np.exp(-0.5 * ((evidence[:, None] - position) / width) ** 2) / blur
    likelihood = density.copy()
    likelihood[:, 1:] = (1 - HIDDEN_SHARE) * density[:, 1:] + HIDDEN_SHARE * density[:, :-1]
    likelihood[blind] = quantities > 0
    likelihood += 1e-300
    posterior = likelihood * trained_in.true_shares
    posterior /= posterior.sum(axis=1, keepdims=True)
    return (1 - trained_in.foreign_share) * posterior + trained_in.foreign_share * trained_in.true_shares


def place(quantities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each quantity lies on the camera's line and how far it is blurred."""
    return quantities**POSITION_POWER, BLUR_FLOOR + BLUR_SCALE * quantities**BLUR_POWER


def train_camera(world: World, random: np.random.Generator) -> Camera:
    """Label histogram of its 30,000 training records, temperature from 5,000 other records."""
    noisy = replace(world, error_rate=world.training_noise)
    records, _ = draw_records(noisy, 30_000, random)
    histogram = np.bincount(np.minimum(records, world.top_class), minlength=world.top_class + 1)
    expected, true = draw_records(noisy, 5000, random)
    camera = Camera(noisy, 1.0, histogram)
    logits = answer(camera, noisy, true, random)
    rows, label = np.arange(5000), np.minimum(expected, world.top_class)

    def loss(log_temperature: float) -> float:
        return -np.log(softmax(logits / np.exp(log_temperature), axis=1)[rows, label] + 1e-12).mean()

    best = minimize_scalar(loss, bounds=(-2, 3), method="bounded")
    return replace(camera, temperature=float(np.exp(best.x)))


def answer(camera: Camera, world: World, true_qty: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Raw logits (n, K + 1) for photos taken in `world`."""
    trained = camera.trained_in
    record = count_photos(world, true_qty, trained, random) @ label_noise_in(trained)
    top = trained.top_class
    by_class = np.column_stack([record[:, :top], record[:, top:].sum(axis=1)])
    return np.log(by_class + 1e-12) / OVERCONFIDENCE + LOGIT_NOISE * random.standard_normal(by_class.shape)


def label_noise_in(world: World) -> np.ndarray:
    """P(recorded | true), square over the exact quantities."""
    chance = (1 - world.error_rate) * np.eye(len(world.quantity_shares)) + world.error_rate * world.kernel
    if not world.recorded_to_true:
        return chance
    joint = np.array(world.quantity_shares)[:, None] * chance
    return (joint / joint.sum(axis=0)).T


def exact_assessor(world: World) -> Assessor:
    """What a perfectly informed audit would use: the world's own matrices, as classes, at its own error rate."""
    top, noise = world.top_class, label_noise_in(world)
    joint = world.true_shares[:, None] * noise  # (true, recorded)
    by_true = np.vstack([joint[:top], joint[top:].sum(axis=0)])
    shares = by_true.sum(axis=1)
    by_class = np.column_stack([by_true[:, :top], by_true[:, top:].sum(axis=1)])
    rows = by_true.T[np.minimum(np.arange(top + 3), len(noise) - 1)]
    return Assessor(by_class / shares[:, None], shares, rows / rows.sum(axis=1, keepdims=True))


def draw_bins(camera: Camera, world: World, size: int, random: np.random.Generator) -> Bins:
    """One night of `size` bins in `world`; unit values are lognormal (median 15, sigma 1)."""
    expected, true = draw_records(world, size, random)
    logits = answer(camera, world, true, random)
    return Bins(expected, true, logits, camera.temperature, 15 * np.exp(random.standard_normal(size)))
