"""Image classification: folders of images, classifier, top-k accuracy."""
