"""Operations: functions that are no recurrence, one file each, for the CPU and for a device."""
