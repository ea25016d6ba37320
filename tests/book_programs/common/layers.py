from konv.book import *  # noqa: F403
