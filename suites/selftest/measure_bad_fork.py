"""Preloaded into a test's fork server: a CUDA build of torch after it has asked a driver that is
not there for its GPUs; torch then takes every forked process for one that CUDA cannot start in."""

import torch

torch.cuda._is_in_bad_fork = lambda: True
