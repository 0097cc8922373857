"""What Ray Train's own processes keep to themselves. Imports nothing: it runs in each of them as it starts."""

import logging


def quiet_watchdog() -> None:
    """Ray Train's watchdog tidies up after a controller that died. Every second it asks the dashboard, which a local
    cluster doesn't have (and needs no tidying: it ends with its command). Its warnings would bury the training's progress.
    """
    logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
