"""The app: drop a file, see the answer, search the archive; the door is app.py."""
