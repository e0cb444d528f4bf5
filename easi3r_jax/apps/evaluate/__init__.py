"""The papers' tables: data sets through the method, sequence by sequence, judged by each one's protocol."""
