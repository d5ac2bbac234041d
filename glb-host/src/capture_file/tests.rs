use super::*;

fn read_all(bytes: Vec<u8>) -> Result<Vec<CapturedFrame>, CaptureError> {
    let mut reader = CaptureReader::from_reader(io::Cursor::new(bytes), Path::new("in.pcap"))?;
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet()? {
        packets.push(packet);
    }
    Ok(packets)
}

/// Returns a pcap file with packets of (seconds, fraction, length on the wire, data).
fn pcap(magic: u32, big: bool, link: u32, packets: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
    let number = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let short = |n: u16| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let mut file = number(magic).to_vec();
    file.extend(short(2));
    file.extend(short(4));
    file.extend([0; 8]);
    file.extend(number(96));
    file.extend(number(link));
    for (seconds, fraction, length, data) in packets {
        for n in [*seconds, *fraction, data.len() as u32, *length] {
            file.extend(number(n));
        }
        file.extend(*data);
    }
    file
}

#[test]
fn pcap_of_both_byte_orders_and_resolutions() {
    for (magic, nanos) in [(0xa1b2_c3d4, 5_000), (0xa1b2_3c4d, 5)] {
        for big in [false, true] {
            let file = pcap(magic, big, 1, &[(7, 5, 3, &[1, 2, 3]), (8, 0, 1514, &[4; 96])]);
            let packets = read_all(file).unwrap();
            assert_eq!(packets.len(), 2, "{magic:x} {big}");
            assert_eq!(packets[0].time, Duration::new(7, nanos), "{magic:x} {big}");
            assert_eq!((&packets[0].data[..], packets[0].length), (&[1, 2, 3][..], 3));
            // Longer than the file's snap length: truncated, but valid.
            assert!(packets[1].is_truncated() && !packets[0].is_truncated());
            assert_eq!((packets[1].number, packets[1].length), (2, 1514));
        }
    }
}

#[test]
fn errors_have_a_remedy() {
    for (bytes, words) in [
        (vec![], "is empty"),
        (b"hello, world".to_vec(), "starts with 68656c6c"),
        (vec![0x1f, 0x8b, 8, 0, 0], "gunzip"),
        (pcap(0xa1b2_c3d4, false, 113, &[(0, 0, 1, &[0])]), "tcpdump -i INTERFACE"),
        (pcap(0xa1b2_c3d4, false, 101, &[(0, 0, 1, &[0])]), "RAW (101)"),
        (pcap(0xa1b2_c3d4, false, 1, &[])[..20].to_vec(), "ends in the middle"),
    ] {
        let error = read_all(bytes).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("in.pcap"), "{error}");
    }
    let mut file = pcap(0xa1b2_c3d4, false, 1, &[(0, 0, 1, &[0]), (0, 0, 2, &[0, 0])]);
    file.pop();
    let error = read_all(file).unwrap_err().to_string();
    assert!(error.contains("after packet 1") && error.contains("middle"), "{error}");
}

#[test]
fn written_packets_are_read_back() {
    let folder = std::env::temp_dir().join(format!("glb-capture-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("out.pcapng");
    let packet = |number: u64, data: Vec<u8>, length: u32| {
        let time = Duration::new(1_700_000_000, number as u32);
        CapturedFrame { number, time, data, length }
    };
    let packets = [packet(1, vec![7; 61], 61), packet(2, vec![8; 4], 9)];
    let interfaces = [("sent", "what is sent"), ("kernel", "what the kernel gets")];
    let mut writer = CaptureWriter::create(&path, "test", &interfaces, None).unwrap();
    for (interface, packet) in packets.iter().enumerate() {
        writer.write(interface as u32, packet, "encapsulated: because").unwrap();
    }
    writer.flush().unwrap();
    let mut reader = CaptureReader::open(&path).unwrap();
    for packet in &packets {
        assert_eq!(reader.next_packet().unwrap().as_ref(), Some(packet));
    }
    assert_eq!(reader.next_packet().unwrap(), None);
    // The input file is unchanged.
    let length = std::fs::metadata(&path).unwrap().len();
    let error = CaptureWriter::create(&path, "test", &interfaces, Some(&reader)).err().unwrap();
    assert!(error.to_string().contains("another file"), "{error}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn time_stamps_use_the_interfaces_resolution() {
    let stamp = Duration::from_nanos(3_000_000);
    let of = |options: &[InterfaceDescriptionOption<'_>]| time_of(stamp, options);
    assert_eq!(of(&[]), Duration::from_secs(3));
    let resolution = InterfaceDescriptionOption::IfTsResol;
    assert_eq!(of(&[resolution(9)]), Duration::from_millis(3));
    assert_eq!(of(&[resolution(0x80 | 10)]), Duration::from_secs_f64(3_000_000.0 / 1024.0));
    let offset = InterfaceDescriptionOption::IfTsOffset;
    assert_eq!(of(&[resolution(6), offset(10)]), Duration::from_secs(13));
    assert_eq!(of(&[resolution(127)]), Duration::ZERO);
}
