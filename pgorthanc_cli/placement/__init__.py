"""Where attachments are: by the index and the database (`storage show`)."""

from pgorthanc_cli.placement.survey import Area, Content, Group, Shown, show

__all__ = ["Area", "Content", "Group", "Shown", "show"]
