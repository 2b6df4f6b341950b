"""What a long fit needs beside its steps: data, devices, checkpoints, callbacks."""
