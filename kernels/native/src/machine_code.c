#include "machine_code.h"

#include <elf.h>
#include <stdint.h>
#include <string.h>

#define CUDA_MACHINE 190

static int lies_inside(uint64_t at, uint64_t size, size_t count) { return at <= count && size <= count - at; }

/* Whether a table of `number` entries of `size` bytes lies inside. */
static int table_inside(uint64_t at, unsigned int number, size_t size, size_t count) {
    return lies_inside(at, (uint64_t)number * size, count);
}

static void section_of(const unsigned char *bytes, const Elf64_Ehdr *header, unsigned int index, Elf64_Shdr *section) {
    memcpy(section, bytes + header->e_shoff + (size_t)index * sizeof *section, sizeof *section);
}

/* Sections: their bytes, their names, and the tables of strings and symbols. */
static const char *sections_fault(const unsigned char *bytes, size_t count, const Elf64_Ehdr *header) {
    Elf64_Shdr names, section;
    if (header->e_shnum == 0 || header->e_shentsize != sizeof section || header->e_shoff % 8 != 0 ||
        !table_inside(header->e_shoff, header->e_shnum, sizeof section, count))
        return "its table of sections does not lie inside it";
    if (header->e_shstrndx >= header->e_shnum) return "its sections have no names";
    section_of(bytes, header, header->e_shstrndx, &names);
    if (names.sh_type != SHT_STRTAB) return "its sections have no names";
    for (unsigned int i = 0; i < header->e_shnum; i++) {
        section_of(bytes, header, i, &section);
        int empty = section.sh_type == SHT_NULL || section.sh_type == SHT_NOBITS;
        if (!empty && !lies_inside(section.sh_offset, section.sh_size, count)) return "a section does not lie inside it";
        if (section.sh_name >= names.sh_size) return "a section's name does not lie inside it";
        if (section.sh_type == SHT_STRTAB && (section.sh_size == 0 || bytes[section.sh_offset + section.sh_size - 1] != 0))
            return "a table of names does not end";
        int symbols = section.sh_type == SHT_SYMTAB || section.sh_type == SHT_DYNSYM;
        if (symbols && (section.sh_link >= header->e_shnum || section.sh_size % sizeof(Elf64_Sym) != 0))
            return "its symbols have no names";
    }
    return NULL;
}

static const char *segments_fault(const unsigned char *bytes, size_t count, const Elf64_Ehdr *header) {
    Elf64_Phdr segment;
    if (header->e_phnum == 0) return NULL;
    if (header->e_phentsize != sizeof segment || !table_inside(header->e_phoff, header->e_phnum, sizeof segment, count))
        return "its table of segments does not lie inside it";
    for (unsigned int i = 0; i < header->e_phnum; i++) {
        memcpy(&segment, bytes + header->e_phoff + (size_t)i * sizeof segment, sizeof segment);
        if (!lies_inside(segment.p_offset, segment.p_filesz, count)) return "a segment does not lie inside it";
    }
    return NULL;
}

const char *ve_machine_code_fault(const unsigned char *bytes, size_t count) {
    Elf64_Ehdr header;
    if (count < sizeof header) return "it is too short";
    memcpy(&header, bytes, sizeof header);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_machine != CUDA_MACHINE)
        return "it is not a 64-bit ELF file for CUDA";
    const char *why = sections_fault(bytes, count, &header);
    return why != NULL ? why : segments_fault(bytes, count, &header);
}
