"""What rules look at comes from the room below."""

from varshift.evidence import Evidence as Evidence
