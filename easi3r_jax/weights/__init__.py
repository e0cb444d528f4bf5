"""Weights: conversion of released files, checkpoints on disk, downloads from the Hugging Face Hub."""
