"""Weights: conversion from the released files, checkpoints on disk, the Hugging Face hub."""
