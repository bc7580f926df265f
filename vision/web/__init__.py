"""The web page: video, faces and classification for people who write no code.

Above the rooms: it may use all of them, none uses it. ``vision.web.server`` starts it.
"""
