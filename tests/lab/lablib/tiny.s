# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
#
# A guest of one boot sector. It writes "boot=<8 hex> n=<decimal>" to COM1 every 18 ticks of the BIOS clock (about a second), sleeps in
# between, and powers off when its ACPI button is pressed. GNU as, 16 bits; guests.py assembles it. The ports are those of SeaBIOS on
# i440fx: power management at 0x600, COM1 at 0x3f8.

.intel_syntax noprefix
.code16
.equ PM_STATUS, 0x600
.equ PM_ENABLE, 0x602
.equ PM_CONTROL, 0x604
.equ BUTTON, 0x100          # in status and enable
.equ SLEEP_S5, 0x2000       # in control
.equ COM_DATA, 0x3f8
.equ COM_STATUS, 0x3fd
.equ TICKS, 0x46c           # the BIOS counts 18.2 of them a second
.equ PERIOD, 18

.globl _start
_start:
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    mov dx, PM_ENABLE
    mov ax, BUTTON
    out dx, ax
    rdtsc                   # who this life is: the time that the BIOS took, and the real-time clock's second
    mov ebx, eax
    rol ebx, 7
    xor al, al
    out 0x70, al
    in al, 0x71
    shl eax, 24
    xor ebx, eax
    imul ebx, ebx, 0x9E3779B1
    mov [life], ebx
    sti
again:
    mov si, offset s_boot
    call puts
    mov ebx, [life]
    mov cx, 8
hex:
    rol ebx, 4
    mov al, bl
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe digit
    add al, 'a' - '9' - 1
digit:
    call putc
    loop hex
    mov si, offset s_n
    call puts
    mov eax, [count]
    inc dword ptr [count]
    mov ecx, 10
    xor bp, bp
divide:
    xor edx, edx
    div ecx
    push dx
    inc bp
    test eax, eax
    jnz divide
decimal:
    pop ax
    add al, '0'
    call putc
    dec bp
    jnz decimal
    mov al, '\n'
    call putc
    mov bx, [TICKS]
    add bx, PERIOD
wait:
    hlt
    mov dx, PM_STATUS
    in ax, dx
    test ax, BUTTON
    jnz off
    mov ax, [TICKS]
    sub ax, bx
    js wait
    jmp again
off:
    mov dx, PM_CONTROL
    mov ax, SLEEP_S5
    out dx, ax
    hlt
    jmp off

puts:
    lodsb
    test al, al
    jz done
    call putc
    jmp puts
done:
    ret

putc:
    push ax
    mov dx, COM_STATUS
full:
    in al, dx
    test al, 0x20
    jz full
    pop ax
    mov dx, COM_DATA
    out dx, al
    ret

s_boot: .asciz "boot="
s_n:    .asciz " n="
life:   .long 0
count:  .long 0
.org 510
.word 0xaa55
