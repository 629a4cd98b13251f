"""What people look at: charts, contact sheets, films, and the folder figures/ with its index.
Arrays and recorded rows in, pictures out.
Imports everything above it in the list of wings; nothing imports it but notebooks and tests.
"""
