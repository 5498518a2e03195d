"""What a network costs: counted, timed, and weighed, each number with its conditions. Knows neither ray nor mlflow."""
