"""The proving ground: methods, rounds and ablations on worlds of invented words, measured on what nobody trained on."""
