"""One stage of training: images in, a committed network out. Needs torch and timm; knows neither ray nor mlflow."""
