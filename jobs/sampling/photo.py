"""One photo of one bin: the shell, its pieces back to front, bands, rims, the camera; a JPEG in the end."""

from __future__ import annotations

import cv2
import numpy as np

from jobs.sampling.contents import Pieces
from jobs.sampling.draws import PHOTO, generator, pick
from jobs.sampling.optics import crowd_out_light, expose, shade_inside, stretch_bands, stretch_cord
from jobs.sampling.packaging import draw_piece
from jobs.sampling.placing import Placement, place_pieces
from jobs.sampling.shell import Shell, draw_shell, paint_inside, paint_rims

JPEG_QUALITY = 95


def draw_photo(seed: int, number: int, pieces: Pieces) -> bytes:
    """The JPEG of bin `number`, about 470 x 330 pixels and 50 KB, from the bin's own random stream."""
    # Streams of their own: another piece in the bin leaves the bin and the camera as they are, but for the light.
    scene, placing, bands, camera = generator(seed, PHOTO, number).spawn(4)
    width, height = _frame_size(scene)
    photo = np.empty((height, width, 3), np.uint8)
    shell = draw_shell(width, height, scene)
    paint_inside(photo, shell, scene)
    opening = (min(width, shell.right) - max(0, shell.left), shell.bottom - shell.top)
    placements = place_pieces(pieces, opening, placing)
    covered = sum(placement.width * placement.height for placement in placements) / (opening[0] * opening[1])
    crowd_out_light(photo, shell, min(1.0, covered), scene)
    for placement in placements:
        _put(photo, shell, placement, placing)
    shade_inside(photo, shell, scene)
    stretch_bands(photo, shell, bands)
    stretch_cord(photo, shell, bands)
    paint_rims(photo, shell, scene)
    exposed = cv2.cvtColor(expose(photo, camera), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", exposed, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes()


def _frame_size(draw: np.random.Generator) -> tuple[int, int]:
    """ABID crops each bin from a larger photo: mostly wide, some square, few upright."""
    width = int(np.clip(draw.lognormal(np.log(458), 0.2), 321, 785))
    aspect = pick(draw, (0.66, 0.74, 1.0, 1.35), (0.4, 0.35, 0.2, 0.05)) * draw.uniform(0.92, 1.08)
    return width, int(np.clip(width * aspect, 240, 820))


def _put(photo: np.ndarray, shell: Shell, placement: Placement, draw: np.random.Generator) -> None:
    """Pastes one piece with its shadow; what is deeper in the bin is smaller, higher up and darker."""
    scale = 1.0 - 0.16 * placement.depth
    width, height = max(6, round(placement.width * scale)), max(6, round(placement.height * scale))
    patch = draw_piece(placement.sku, width, height, view=placement.view, draw=draw)
    left = max(0, shell.left) + (max(0, shell.back_left) - max(0, shell.left)) * placement.depth
    right = min(shell.width, shell.right) - (shell.right - shell.back_right) * placement.depth
    span = min(shell.width, shell.right) - max(0, shell.left)
    x = left + (right - left) * placement.x / span
    y = shell.bottom + 4 - shell.floor_height * placement.depth - placement.lift * scale
    turn = cv2.getRotationMatrix2D((width / 2, height), placement.tilt, 1.0)
    # The patch's own frame grows so that a tilted piece and its shadow fit.
    reach = int(0.5 * abs(np.sin(np.radians(placement.tilt))) * (width + 2 * height)) + 8
    turn[:, 2] += (reach, reach)
    size = (width + 2 * reach, height + 2 * reach)
    turned = cv2.warpAffine(patch, turn, size, flags=cv2.INTER_LINEAR)
    # Half the sine of the tilt brings the lowest corner back to the floor.
    sink = 0.5 * width * abs(np.sin(np.radians(placement.tilt)))
    x0, y0 = round(x - width / 2) - reach, round(y - sink - height) - reach
    from_x, from_y = max(0, -x0), max(0, -y0)
    to_x, to_y = min(size[0], shell.width - x0), min(size[1], shell.height - y0)
    if to_x <= from_x or to_y <= from_y:
        return
    region = photo[y0 + from_y : y0 + to_y, x0 + from_x : x0 + to_x]
    seen = turned[from_y:to_y, from_x:to_x]
    opacity = seen[:, :, 3].astype(np.float32) / 255
    shadow = cv2.blur(turned[:, :, 3], (13, 13))[from_y:to_y, from_x:to_x].astype(np.float32) * (
        draw.uniform(0.35, 0.65) / 255
    )
    light = (1.0 - 0.35 * placement.depth) * draw.uniform(0.65, 1.05)
    piece = cv2.convertScaleAbs(cv2.cvtColor(seen, cv2.COLOR_RGBA2RGB), alpha=light)
    behind = cv2.blendLinear(region, np.zeros_like(region), 1 - shadow, shadow)
    region[:] = cv2.blendLinear(piece, behind, opacity, 1 - opacity)
