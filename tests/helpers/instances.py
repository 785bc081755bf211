"""What MMEngine keeps by name for a whole process: loggers, message hubs, visualizers, default scopes."""

from mmengine.utils import ManagerMixin


def forget_instances(manager: type = ManagerMixin) -> None:
    """Drops them all. A later run would go on with those of its name, or log to a stream that is closed."""
    manager._instance_dict.clear()
    for kind in manager.__subclasses__():  # each has a dictionary of its own
        forget_instances(kind)
